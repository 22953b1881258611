// Direct convolutions of float32, with fused multiply-adds of whole vectors.
#pragma once

#include "convolution_weight.h"
#include "pack.h"

namespace cdn::CDN_VARIANT {
namespace {

struct FloatEngine {
    using Storage = Float32;
    static constexpr int kType = CDN_FLOAT32;
    static constexpr int kWords = kLanes, kVectors = 2;
#ifdef __AVX512F__
    static constexpr int kRows = 8;  // 16 sums hide how long an instruction takes
#else
    static constexpr int kRows = 6;  // 12 of 16 registers
#endif
    static constexpr int kColumns = kVectors * kWords;
    static constexpr std::int64_t kPairs = 1;
    static constexpr bool kRowsOfPairs = false;
    struct Session {};

    static void round(const float* from, float* to) { std::memcpy(to, from, kColumns * sizeof(float)); }

    template <typename Meanwhile>
    static void multiply(const TileProduct& p, Meanwhile meanwhile) {
        meanwhile();
        p.columns > kWords ? choose<2, kRows>(p) : choose<1, kRows>(p);
    }

    template <int vectors, int rows>
    static void choose(const TileProduct& p) {
        if (p.rows == rows) return run<rows, vectors>(p);
        if constexpr (rows > 1) return choose<vectors, rows - 1>(p);
    }

    template <int rows, int vectors>
    static void run(const TileProduct& p) {
        Vector sums[rows][vectors] = {};
        for (std::int64_t s = 0; s < p.count; ++s) {
            const Pair *a = p.a + p.stretches[s].a, *b = p.b + p.stretches[s].b;
            for (std::int64_t k = 0; k < p.pairs; ++k, a += p.a_pair, b += p.b_pair) {
                Vector right[vectors];
#pragma GCC unroll 2
                for (int v = 0; v < vectors; ++v) right[v] = read<Vector>(b + v * kWords);
#pragma GCC unroll 8
                for (int row = 0; row < rows; ++row) {
                    const Vector left = bit_cast<float>(a[row * p.a_row]) - Vector{};
#pragma GCC unroll 2
                    for (int v = 0; v < vectors; ++v) sums[row][v] = multiply_add(left, right[v], sums[row][v]);
                }
            }
        }
        for (int row = 0; row < rows; ++row)
            for (int v = 0; v < vectors; ++v) write(p.tile + row * kColumns + v * kWords, sums[row][v]);
    }
};

}  // namespace

extern const ConvolutionKernels float32{1 << 22, Convolution<FloatEngine>::takes, Convolution<FloatEngine>::plan,
                                        Convolution<FloatEngine>::run};

}  // namespace cdn::CDN_VARIANT
