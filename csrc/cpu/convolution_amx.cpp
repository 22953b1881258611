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

    // The processor puts its unit for vectors of floats to sleep after some 2,000 cycles in which it had nothing to do,
    // and a store of a tile, which needs it, waits 1,000 cycles until it is awake: half as long as a product of 36
    // stretches takes. An addition now and then prevents that.
    static void stay_awake() {
        __m128 zero = _mm_setzero_ps();
        __asm__ volatile("vaddps %0, %0, %0" : "+x"(zero));
    }

    // 16 by 16 words, whose rows are a number of bytes apart, to rows that are a number of words apart.
    static void transpose(const void* from, std::int64_t row, Pair* to, std::int64_t to_row) {
        __m512i a[16], b[16];
        for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(static_cast<const char*>(from) + i * row);
        // In every quarter of a vector: words of two rows, then of four; in the end the quarters change places.
        for (int i = 0; i < 16; i += 2) {
            b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
        }
        for (int i = 0; i < 16; i += 4)
            for (int k = 0; k < 2; ++k) {
                a[i + 2 * k] = _mm512_unpacklo_epi64(b[i + k], b[i + 2 + k]);
                a[i + 2 * k + 1] = _mm512_unpackhi_epi64(b[i + k], b[i + 2 + k]);
            }
        for (int k = 0; k < 4; ++k) {
            b[k] = _mm512_shuffle_i32x4(a[k], a[k + 4], 0x88);
            b[k + 4] = _mm512_shuffle_i32x4(a[k], a[k + 4], 0xdd);
            b[k + 8] = _mm512_shuffle_i32x4(a[k + 8], a[k + 12], 0x88);
            b[k + 12] = _mm512_shuffle_i32x4(a[k + 8], a[k + 12], 0xdd);
        }
        for (int k = 0; k < 4; ++k)
            for (int half = 0; half < 2; ++half) {
                const __m512i first = b[k + 4 * half], second = b[k + 8 + 4 * half];
                _mm512_storeu_si512(to + (k + 4 * half) * to_row, _mm512_shuffle_i32x4(first, second, 0x88));
                _mm512_storeu_si512(to + (k + 4 * half + 8) * to_row, _mm512_shuffle_i32x4(first, second, 0xdd));
            }
    }

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
