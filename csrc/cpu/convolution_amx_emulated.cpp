// An imitation of AMX tiles in plain C++, to test on any processor what is done with them.
#define CDN_VARIANT amx_emulated
#include "convolution_amx.h"

namespace cdn::amx_emulated {
namespace {

struct Tiles {
    struct Session {};
    struct Tile {
        std::uint32_t words[16][16];
    };
    static Tile& tile(int number) {
        static thread_local Tile tiles[8];
        return tiles[number];
    }

    static void settle(const void*) {}
    static void stay_awake() {}
    static void transpose(const void* from, std::int64_t row, Pair* to, std::int64_t to_row) {
        for (int i = 0; i < 16; ++i)
            for (int k = 0; k < 16; ++k)
                std::memcpy(to + k * to_row + i, static_cast<const char*>(from) + i * row + k * sizeof(Pair),
                            sizeof(Pair));
    }
    template <int t>
    static void zero() {
        std::memset(&tile(t), 0, sizeof(Tile));
    }
    template <int t>
    static void load(const void* from, std::int64_t row) {
        for (int i = 0; i < 16; ++i) std::memcpy(tile(t).words[i], static_cast<const char*>(from) + i * row, 64);
    }
    template <int t>
    static void store(void* to, std::int64_t row) {
        for (int i = 0; i < 16; ++i) std::memcpy(static_cast<char*>(to) + i * row, tile(t).words[i], 64);
    }
    template <int c, int a, int b>
    static void multiply() {
        Tile &sum = tile(c), &left = tile(a), &right = tile(b);
        for (int row = 0; row < 16; ++row)
            for (int k = 0; k < 16; ++k)
                for (int column = 0; column < 16; ++column) {
                    const Pair x = left.words[row][k], y = right.words[k][column];
                    float value = bit_cast<float>(sum.words[row][column]);
                    value += bit_cast<float>(x << 16) * bit_cast<float>(y << 16);
                    value += bit_cast<float>(x & 0xffff0000) * bit_cast<float>(y & 0xffff0000);
                    sum.words[row][column] = bit_cast<std::uint32_t>(value);
                }
    }
};

using Engine = TileEngine<Tiles>;

}  // namespace

extern const ConvolutionKernels convolution{1 << 22, Convolution<Engine>::takes, Convolution<Engine>::plan,
                                            Convolution<Engine>::run};

}  // namespace cdn::amx_emulated
