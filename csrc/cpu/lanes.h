// Vectors of 32-bit words, as wide as the processor that a file is compiled for.
//
// Compilers vectorize the rest of the noise by themselves, but not the 32 x 32 -> 64 bit products of Philox, which cost
// twice the time without these instructions.
#pragma once

#include "../philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace cdn::CDN_VARIANT {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Lanes = std::uint32_t __attribute__((vector_size(4 * kLanes)));
using Pairs = std::uint64_t __attribute__((vector_size(4 * kLanes)));

// The products of the even lanes: the lower halves of 64-bit numbers.
CDN_HOST_DEVICE Pairs even_products(Pairs a, Pairs b) {
#if defined(__AVX512F__)
    return (Pairs)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);  // unmasked, GCC 12 warns wrongly
#elif defined(__AVX2__)
    return (Pairs)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Pairs)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON)
    return (Pairs)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
    return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// 0, 1, 2, ...: the blocks of one vector.
CDN_HOST_DEVICE Lanes lane_numbers() {
    Lanes numbers{};
    for (int lane = 0; lane < kLanes; ++lane) numbers[lane] = lane;
    return numbers;
}

}  // namespace
}  // namespace cdn::CDN_VARIANT

namespace cdn {

template <>
struct Product<CDN_VARIANT::Lanes> {
    using Lanes = CDN_VARIANT::Lanes;
    using Pairs = CDN_VARIANT::Pairs;

    // The upper halves of the long products, lane 2i the lower half of pair i for they are little-endian; the lower
    // halves have an instruction of their own.
    CDN_HOST_DEVICE void halves(Lanes a, std::uint32_t m, Lanes& high, Lanes& low) {
        const Pairs factor = Pairs{} + m, upper = Pairs{} + 0xFFFFFFFF00000000u;
        const Pairs even = CDN_VARIANT::even_products((Pairs)a, factor);
        const Pairs odd = CDN_VARIANT::even_products((Pairs)a >> 32, factor);
        high = (Lanes)((even >> 32) | (odd & upper));
        low = a * m;
    }
};

}  // namespace cdn
