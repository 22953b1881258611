// Pairs of float16, which compilers for processors know by another name.
#pragma once

#include <cuda_runtime.h>

struct __half2 {
    _Float16 x, y;
};

inline __half2 __floats2half2_rn(float x, float y) { return {static_cast<_Float16>(x), static_cast<_Float16>(y)}; }
inline float2 __half22float2(__half2 a) { return {static_cast<float>(a.x), static_cast<float>(a.y)}; }
