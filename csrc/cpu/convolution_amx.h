// Convolutions with AMX tiles: 16 rows of 32 values times 32 values of 16 columns an instruction.
//
// Written once over eight tiles of 16 rows of 64 bytes, which are those of the processor (convolution_amx.cpp) or an
// imitation (convolution_amx_emulated.cpp), so that what surrounds the instructions is tested on any processor.
#pragma once

#include "convolution_weight.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Tiles>
struct TileEngine {
    using Storage = Bfloat16;
    static constexpr int kType = CDN_BFLOAT16;
    static constexpr int kRows = 32, kColumns = 32;
    static constexpr std::int64_t kPairs = 16;
    static constexpr bool kRowsOfPairs = true;
    using Session = typename Tiles::Session;

    static void round(const float* from, std::uint16_t* to) { round_row<kColumns>(from, to); }

    // [pair, row] to [row, pair], of a tile.
    static void transpose(const Pair* from, Pair* to) {
        for (int half = 0; half < kRows; half += 16)
            Tiles::transpose(from + half, kRows * sizeof(Pair), to + half * kPairs, kPairs);
    }

    // [column, pair], columns a number of values apart, to [pair, column].
    static void transpose(const std::uint16_t* from, std::int64_t column, Pair* to) {
        for (int half = 0; half < kColumns; half += 16)
            Tiles::transpose(from + half * column, column * sizeof(*from), to + half, kColumns);
    }

    // Two by two sums in tiles 0 to 3; tiles 4 and 5 hold rows of a, 6 and 7 columns of b.
    template <typename Meanwhile>
    static void multiply(const TileProduct& p, Meanwhile meanwhile) {
        // Operands are loaded in whole tiles: the scratch behind the last row has to be there, its content is unused.
        const bool lower = p.rows > 16;
        const std::int64_t half = 16 * p.a_row, a_row = p.a_row * 4, b_row = p.b_pair * 4;
        Tiles::settle(p.a);
        Tiles::template zero<0>();
        Tiles::template zero<1>();
        if (lower) Tiles::template zero<2>(), Tiles::template zero<3>();
        for (std::int64_t slice = 0; slice < p.slices; ++slice)
            for (std::int64_t s = 0; s < p.count; ++s) {
                const Pair* a = p.a + slice * p.a_slice + p.stretches[s].a;
                const Pair* b = p.b + slice * p.b_slice + p.stretches[s].b;
                Tiles::stay_awake();
                Tiles::template load<6>(b, b_row);
                Tiles::template load<7>(b + 16, b_row);
                Tiles::template load<4>(a, a_row);
                Tiles::template multiply<0, 4, 6>();
                Tiles::template multiply<1, 4, 7>();
                if (lower) {
                    Tiles::template load<5>(a + half, a_row);
                    Tiles::template multiply<2, 5, 6>();
                    Tiles::template multiply<3, 5, 7>();
                }
                meanwhile();
            }
        constexpr std::int64_t row = kColumns * 4;
        Tiles::template store<0>(p.tile, row);
        Tiles::template store<1>(p.tile + 16, row);
        if (lower) {
            Tiles::template store<2>(p.tile + 16 * kColumns, row);
            Tiles::template store<3>(p.tile + 16 * kColumns + 16, row);
        }
    }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
