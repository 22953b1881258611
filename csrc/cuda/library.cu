// What the library says of itself, of the driver and of errors.
#include "launch.h"

#define CDN_TEXT(words) CDN_QUOTED(words)
#define CDN_QUOTED(words) #words

int cdn_cuda_interface() { return CDN_CUDA_INTERFACE; }

const char* cdn_cuda_build() { return CDN_TEXT(CDN_CUDA_BUILD); }

int cdn_cuda_toolkit() { return CUDART_VERSION; }

int cdn_cuda_driver() {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

const char* cdn_cuda_error(int status) {
    switch (status) {
        case cdn::kRefused: return "an argument is out of range";
        case cdn::kTooLarge:
            return "a sample has 2^30 values or more, or a batch as many channels, or groups do not fit into the "
                   "shared memory of a block";
        case cdn::kNoKernel:
            return "its convolutions are forward or by the input, 3x3 with stride 1, from 64 to 64 channels, of "
                   "bfloat16 or float16, on GPUs whose blocks may have 157 KiB of shared memory";
    }
    return cudaGetErrorString(static_cast<cudaError_t>(status));
}
