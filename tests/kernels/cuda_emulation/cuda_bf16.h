// Pairs of bfloat16, rounded to nearest even.
#pragma once

#include <cuda_runtime.h>

struct __nv_bfloat162 {
    std::uint16_t x, y;
};

inline std::uint16_t emulated_bfloat16(float a) {
    std::uint32_t bits;
    std::memcpy(&bits, &a, sizeof(bits));
    return a != a ? 0x7fff : static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {emulated_bfloat16(x), emulated_bfloat16(y)}; }
