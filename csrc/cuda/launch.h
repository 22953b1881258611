// Launching kernels in the caller's stream, and what can go wrong.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "api.h"

namespace cdn {

constexpr int kRefused = -1;  // a status that is no error of CUDA: an argument out of range
constexpr int kTooLarge = -2;
constexpr int kNoKernel = -3;

// Samples have fewer values than that, so that 32 bits also count the steps beyond their end.
constexpr std::int64_t kMostValues = 1 << 30;
constexpr std::int64_t kMostBlocks = 0x7fffffff;

// Run a kernel; return 0 or what CUDA refused.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 blocks, int threads, int shared, void* stream, Arguments... arguments) {
    constexpr int kWithoutAsking = 48 << 10;
    if (shared > kWithoutAsking) {
        const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
        if (status != cudaSuccess) return status;
    }
    cudaLaunchConfig_t where{};
    where.gridDim = blocks;
    where.blockDim = dim3(threads);
    where.dynamicSmemBytes = shared;
    where.stream = static_cast<cudaStream_t>(stream);
    return cudaLaunchKernelEx(&where, kernel, arguments...);
}

// An attribute of the current device, or 0 if there is none.
inline int attribute(cudaDeviceAttr wanted) {
    int device = 0, value = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 0;
    return cudaDeviceGetAttribute(&value, wanted, device) == cudaSuccess ? value : 0;
}

// Tell whether all addresses, null or not, are multiples of so many bytes.
template <typename... Pointers>
bool aligned(std::uintptr_t bytes, Pointers... pointers) {
    return ((reinterpret_cast<std::uintptr_t>(pointers) | ...) & (bytes - 1)) == 0;
}

}  // namespace cdn
