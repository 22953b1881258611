// Convolutions with the dot products of AVX-512: 16 sums of pairs an instruction.
#define CDN_VARIANT avx512bf16
#include <immintrin.h>

#include "convolution_weight.h"

namespace cdn::avx512bf16 {
namespace {

struct Engine {
    using Storage = Bfloat16;
    static constexpr int kType = CDN_BFLOAT16;
    // 16 accumulators hide the latency of the instruction; eight broadcasts and two loads feed 16 of them.
    static constexpr int kRows = 8, kColumns = 32;
    static constexpr std::int64_t kPairs = 1;
    static constexpr bool kRowsOfPairs = false;
    struct Session {};

    static void round(const float* from, std::uint16_t* to) { round_row<kColumns>(from, to); }

    template <typename Meanwhile>
    static void multiply(const TileProduct& p, Meanwhile meanwhile) {
        meanwhile();
        p.columns > 16 ? choose<2>(p) : choose<1>(p);
    }

    template <int vectors>
    static void choose(const TileProduct& p) {
        switch (p.rows) {
            case 1: return run<1, vectors>(p);
            case 2: return run<2, vectors>(p);
            case 3: return run<3, vectors>(p);
            case 4: return run<4, vectors>(p);
            case 5: return run<5, vectors>(p);
            case 6: return run<6, vectors>(p);
            case 7: return run<7, vectors>(p);
            case 8: return run<8, vectors>(p);
        }
    }

    template <int rows, int vectors>
    static void run(const TileProduct& p) {
        __m512 sums[rows][vectors];
        for (auto& row : sums)
            for (auto& sum : row) sum = _mm512_setzero_ps();
        for (std::int64_t s = 0; s < p.count; ++s) {
            const Pair *a = p.a + p.stretches[s].a, *b = p.b + p.stretches[s].b;
            for (std::int64_t k = 0; k < p.pairs; ++k, a += p.a_pair, b += p.b_pair) {
                __m512bh right[vectors];
                for (int v = 0; v < vectors; ++v) right[v] = (__m512bh)_mm512_loadu_si512(b + 16 * v);
#pragma GCC unroll 8
                for (int row = 0; row < rows; ++row) {
                    const __m512bh left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[row * p.a_row]));
#pragma GCC unroll 2
                    for (int v = 0; v < vectors; ++v) sums[row][v] = _mm512_dpbf16_ps(sums[row][v], left, right[v]);
                }
            }
        }
        for (int row = 0; row < rows; ++row)
            for (int v = 0; v < vectors; ++v) _mm512_store_ps(p.tile + row * kColumns + 16 * v, sums[row][v]);
    }
};

}  // namespace

extern const ConvolutionKernels convolution{1 << 22, Convolution<Engine>::takes, Convolution<Engine>::plan,
                                            Convolution<Engine>::run};

}  // namespace cdn::avx512bf16
