// The convolutions in plain C++: what the other engines compute, for tests on any processor.
#define CDN_VARIANT portable
#include "convolution_weight.h"

namespace cdn::portable {
namespace {

struct Engine {
    using Storage = Bfloat16;
    static constexpr int kType = CDN_BFLOAT16;
    static constexpr int kRows = 8, kColumns = 32;
    static constexpr std::int64_t kPairs = 1;
    static constexpr bool kRowsOfPairs = false;
    struct Session {};

    template <typename Meanwhile>
    static void multiply(const TileProduct& p, Meanwhile meanwhile) {
        meanwhile();
        for (int i = 0; i < p.rows * kColumns; ++i) p.tile[i] = 0;
        for (std::int64_t s = 0; s < p.count; ++s)
            for (std::int64_t k = 0; k < p.pairs; ++k)
                for (int row = 0; row < p.rows; ++row) {
                    const Pair a = p.a[p.stretches[s].a + row * p.a_row + k * p.a_pair];
                    const Pair* b = p.b + p.stretches[s].b + k * p.b_pair;
                    for (int column = 0; column < kColumns; ++column)
                        p.tile[row * kColumns + column] += dot(a, b[column]);
                }
    }

    static void round(const float* from, std::uint16_t* to) { round_row<kColumns>(from, to); }

    static float dot(Pair a, Pair b) {
        return bit_cast<float>(a << 16) * bit_cast<float>(b << 16)
            + bit_cast<float>(a & 0xffff0000) * bit_cast<float>(b & 0xffff0000);
    }
};

}  // namespace

extern const ConvolutionKernels convolution{1 << 22, Convolution<Engine>::takes, Convolution<Engine>::plan,
                                            Convolution<Engine>::run};

}  // namespace cdn::portable
