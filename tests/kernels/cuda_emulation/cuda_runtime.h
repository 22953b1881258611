// What the CUDA kernels need of CUDA, on a processor: a launch runs its blocks one after the other, and the threads of
// a block as fibers, one at a time, each until it waits for the others. See emulation.cpp.
//
// Harsher than a GPU in some things: shared memory starts as NaN and ends where the launch said, asynchronous copies
// happen as late as they may or else at once, and waiting for threads that went elsewhere is an error.
#pragma once

#define __CUDACC__
#define __CUDA_ARCH__ 900
#define CUDART_VERSION 13000

#define __global__ static
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

using std::max;
using std::min;

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
    float x, y;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the running thread

namespace emulation {

void run(dim3 blocks, dim3 threads, std::size_t shared, const std::function<void()>& kernel);
void wait_for_block();
void wait_for_team(int barrier, int count);

// What the lanes of a warp show each other; a lane may make the next before others have read this one.
class Deposits {
public:
    Deposits(const void* mine, std::size_t size);
    template <typename T>
    const T& of(int lane) const {
        return *static_cast<const T*>(place(lane));
    }

private:
    const void* place(int lane) const;
    int slot;
};

}  // namespace emulation

inline void __syncthreads() { emulation::wait_for_block(); }

template <typename T>
T __shfl_xor_sync(unsigned, T mine, int distance) {
    return emulation::Deposits(&mine, sizeof(T)).of<T>(threadIdx.x % 32 ^ distance);
}

template <typename T>
T __shfl_sync(unsigned, T mine, int lane) {
    return emulation::Deposits(&mine, sizeof(T)).of<T>(lane);
}

// As wrong as it may be: by two units in the last place.
inline float __fdividef(float a, float b) { return a / b * (1 + 0x1p-22f); }

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
const char* cudaGetErrorString(cudaError_t error);

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int shared) {
    int most;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    return shared <= most ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* where, void (*kernel)(Parameters...), Arguments... arguments) {
    const dim3 &blocks = where->gridDim, &threads = where->blockDim;
    if (!blocks.x || !blocks.y || !blocks.z || blocks.y > 65535 || blocks.z > 65535 || threads.x > 1024)
        return cudaErrorInvalidValue;
    emulation::run(blocks, threads, where->dynamicSmemBytes, [=] { kernel(arguments...); });
    return cudaSuccess;
}

// What CUDA C++ has no functions for comes before the sources ask for it.
#include "instructions.h"
