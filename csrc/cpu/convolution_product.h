// The one product that all convolutions are made of.
//
// Both operands hold words of 32 bits: pairs of bfloat16 that are summed over, the format of the dot-product
// instructions of AVX-512 (vdpbf16ps) and AMX (tdpbf16ps), or one float32 each.
#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "storage.h"

namespace cdn {

using Pair = std::uint32_t;  // two bfloat16, or one float32

// The word of one value, the first of a pair.
static inline Pair word(std::uint16_t value) { return value; }
static inline Pair word(float value) { return bit_cast<Pair>(value); }

// Where a stretch of the sum begins in either operand.
struct Stretch {
    std::int64_t a, b;  // in pairs
};

// What an engine's multiply(product, meanwhile) computes: tile[rows, kColumns] = sum over slices, stretches and pairs
// of a[row, pair] . b[pair, column]. It calls `meanwhile`, which has other things to do, once, or after every stretch
// if its kPairs is not 1.
struct TileProduct {
    const Pair *a, *b;
    const Stretch* stretches;
    std::int64_t count;  // of stretches
    std::int64_t pairs;  // in a stretch: the engine's kPairs, or any number if that is 1
    std::int64_t a_row, a_pair, b_pair;  // distances, in pairs; a_pair = 1 if the engine's kRowsOfPairs
    int rows, columns;   // up to the engine's kRows and kColumns; the tile may get more of either
    float* tile = nullptr;
    std::int64_t slices = 1, a_slice = 0, b_slice = 0;  // repetitions, 1 if kPairs is, and their distances
};

// Round the columns of a row of a tile. The instruction makes numbers below the smallest normal one 0, as the products
// of its engines do.
template <int columns>
static inline void round_row(const float* from, std::uint16_t* to) {
#ifdef __AVX512BF16__
    static_assert(columns % 32 == 0);
    for (int i = 0; i < columns; i += 32) {
        const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16), _mm512_loadu_ps(from + i));
        std::memcpy(to + i, &both, sizeof(both));
    }
#else
    for (int i = 0; i < columns; ++i) to[i] = Bfloat16::store(from[i]);
#endif
}

}  // namespace cdn
