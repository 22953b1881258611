// Philox4x32-10: a counter and a key in, four random words out, no state (Salmon et al., SC 2011).
//
// Everything in these headers is forced inline: the files of the CPU library are compiled for different
// processors, and a function shared by the linker could carry AVX-512 instructions into the scalar file.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CDN_MEMBER __host__ __device__ __forceinline__
#else
#define CDN_MEMBER inline __attribute__((always_inline))
#endif
#define CDN_HOST_DEVICE static CDN_MEMBER

namespace cdn {

enum Stream : std::uint32_t { kNormalStream = 0, kLevelStream = 1 };

struct Key {
    std::uint64_t seed, offset;
};

// Where images stand in a batch, which is all that their noise knows of it: at `places`, or one after the other from
// `first` if that is null; modulo 2^32.
struct Places {
    std::int64_t first;
    const std::int64_t* places;

    CDN_MEMBER std::uint32_t of(std::int64_t image) const {
        return static_cast<std::uint32_t>(places ? places[image] : first + image);
    }
};

template <typename Word>
struct Words {
    Word w0, w1, w2, w3;
};

// The halves of the 64-bit products a m; lanes.h specializes it for vectors.
template <typename Word>
struct Product {
    CDN_HOST_DEVICE void halves(std::uint32_t a, std::uint32_t m, std::uint32_t& high, std::uint32_t& low) {
        const std::uint64_t product = std::uint64_t{a} * m;
        high = static_cast<std::uint32_t>(product >> 32);
        low = static_cast<std::uint32_t>(product);
    }
};

// The words of block `block` of an image. Word is an integer or a vector of them. The stream is the top bit
// of the counter, so offset < 2^63.
template <typename Word>
CDN_HOST_DEVICE Words<Word> philox(Word block, std::uint32_t image, Key key, Stream stream) {
    const std::uint32_t offset_low = static_cast<std::uint32_t>(key.offset);
    const std::uint32_t offset_high = static_cast<std::uint32_t>(key.offset >> 32);
    Word c0 = block, c1 = Word{} + image, c2 = Word{} + offset_low;
    Word c3 = Word{} + (offset_high | stream << 31);
    std::uint32_t k0 = static_cast<std::uint32_t>(key.seed), k1 = static_cast<std::uint32_t>(key.seed >> 32);
    for (int round = 0; round < 10; ++round) {
        Word high0, low0, high1, low1;
        Product<Word>::halves(c0, 0xD2511F53u, high0, low0);
        Product<Word>::halves(c2, 0xCD9E8D57u, high1, low1);
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
}

}  // namespace cdn
