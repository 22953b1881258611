// AMX tiles of the processor.
#define CDN_VARIANT amx
#include <immintrin.h>

#include "convolution_amx.h"

namespace cdn::amx {
namespace {

// Intrinsics take the number of a tile as a literal.
struct Tiles {
    // Tiles are configured per thread, and given back: their state would be saved at every change of context.
    struct Session {
        Session() {
            struct alignas(64) {
                std::uint8_t palette = 1, start = 0, reserved[14] = {};
                std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
                std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
            } config;
            settle(&config);
            _tile_loadconfig(&config);
        }
        ~Session() { _tile_release(); }
        Session(const Session&) = delete;
    };

    // What was written to memory has to be there: GCC 12 does not know that the intrinsics read it.
    static void settle(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

    template <int> static void zero();
    template <int> static void load(const void* from, std::int64_t row);
    template <int> static void store(void* to, std::int64_t row);
    template <int c, int a, int b> static void multiply();
};

#define CDN_SUM_TILE(c, a, b)                                                                  \
    template <> void Tiles::zero<c>() { _tile_zero(c); }                                       \
    template <> void Tiles::store<c>(void* to, std::int64_t row) { _tile_stored(c, to, row); } \
    template <> void Tiles::multiply<c, a, b>() { _tile_dpbf16ps(c, a, b); }
CDN_SUM_TILE(0, 4, 6)
CDN_SUM_TILE(1, 4, 7)
CDN_SUM_TILE(2, 5, 6)
CDN_SUM_TILE(3, 5, 7)

#define CDN_OPERAND_TILE(t) \
    template <> void Tiles::load<t>(const void* from, std::int64_t row) { _tile_loadd(t, from, row); }
CDN_OPERAND_TILE(4)
CDN_OPERAND_TILE(5)
CDN_OPERAND_TILE(6)
CDN_OPERAND_TILE(7)

using Engine = TileEngine<Tiles>;

}  // namespace

extern const ConvolutionKernels convolution{1 << 22, Convolution<Engine>::takes, Convolution<Engine>::plan,
                                            Convolution<Engine>::run};

}  // namespace cdn::amx
