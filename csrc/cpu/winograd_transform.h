// The transforms of Winograd's minimal filtering F(4x4, 3x3) and F(8x8, 3x3): 4x4 results of a 3x3 filter from 36
// products instead of 144, or 8x8 from 100 instead of 576.
//
// A polynomial is known by its values at 0 and at points +-p, and by its leading coefficient ("at infinity"). In one
// dimension, results are A' ((G g) * (B' d)) of 3 taps g and neighbours d; in two, every transform is applied along
// columns and rows. The gradient by the filter is the transpose, G' ((A y) * (B' d)), and shares B' d.
//
// Points of 4 results are 1/sqrt(2) and sqrt(2), with which they err half as much as with the usual 1 and 2. Those of 8
// results, 0.4, 0.8 and their inverses, err 20 times as much, some 2e-5 of the results: that is for storage of 16 bits,
// which rounds to 2e-3.
//
// Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016 (the algorithm); Barabasz et al.,
// "Error analysis and improving the accuracy of Winograd convolution for deep neural networks", 2020 (points).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "pack.h"

namespace cdn::CDN_VARIANT {
namespace {

constexpr std::int64_t kTaps = 3;

// Vectors of one number a lane, as many bytes as the processor's.
template <typename Real>
struct WideOf {
    typedef Real type __attribute__((vector_size(4 * kLanes)));
};
template <typename Real>
using Wide = typename WideOf<Real>::type;
template <typename Real>
constexpr std::int64_t kWide = 4 * kLanes / sizeof(Real);

CDN_HOST_DEVICE Wide<double> multiply_add(Wide<double> a, Wide<double> b, Wide<double> c) { return a * b + c; }

template <typename Real>
CDN_HOST_DEVICE Wide<Real> all(Real a) {
    return a - Wide<Real>{};
}
// a b + c with a constant a.
template <typename Real>
CDN_HOST_DEVICE Wide<Real> times(double a, Wide<Real> b, Wide<Real> c) {
    return multiply_add(all(static_cast<Real>(a)), b, c);
}
template <typename Real>
CDN_HOST_DEVICE Wide<Real> times(double a, Wide<Real> b) {
    return all(static_cast<Real>(a)) * b;
}

// The elements of a vector, of which `count` are there; the others are 0.
template <typename Storage>
CDN_HOST_DEVICE Wide<typename Storage::Real> load(const typename Storage::Element* from, std::int64_t count) {
    using Real = typename Storage::Real;
    if constexpr (Vectors<Storage>::exists)
        if (count >= kWide<Real>) return Vectors<Storage>::load(from);
    Real values[kWide<Real>] = {};
    for (std::int64_t i = 0; i < std::min(count, kWide<Real>); ++i) values[i] = Storage::load(from[i]);
    return read<Wide<Real>>(values);
}
template <typename Storage>
CDN_HOST_DEVICE void store(typename Storage::Element* to, Wide<typename Storage::Real> v, std::int64_t count) {
    using Real = typename Storage::Real;
    if constexpr (Vectors<Storage>::exists) {
        if (count >= kWide<Real>) return Vectors<Storage>::store(to, v);
        typename Storage::Element stored[kWide<Real>];
        Vectors<Storage>::store(stored, v);  // the same instruction for all elements
        std::memcpy(to, stored, count * sizeof(*to));
        return;
    }
    for (std::int64_t i = 0; i < std::min(count, kWide<Real>); ++i) to[i] = Storage::store(v[i]);
}

// Write lines of memory past the cache, which would fetch them first: for what is large and not read soon. Before
// another thread reads them, this one calls settle().
#ifdef __AVX512F__
template <typename Storage>
constexpr bool kStreams = std::is_same_v<typename Storage::Real, typename Storage::Element>;
template <typename V>
CDN_HOST_DEVICE void stream(void* to, V v) {
    _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)v);
}
CDN_HOST_DEVICE void settle() { _mm_sfence(); }
#else
template <typename Storage>
constexpr bool kStreams = false;
template <typename V>
CDN_HOST_DEVICE void stream(void*, V) {}
CDN_HOST_DEVICE void settle() {}
#endif

#ifndef __has_builtin  // GCC before 10
#define __has_builtin(name) 0
#endif

// Exchange the lanes that have a bit in their number with those of another vector that lack it.
template <std::size_t bit, typename V, std::size_t... lane>
CDN_HOST_DEVICE void exchange(V& a, V& b, std::index_sequence<lane...>) {
    const V first = a, second = b;
#if __has_builtin(__builtin_shufflevector)
    a = __builtin_shufflevector(first, second, (lane & bit ? sizeof...(lane) + lane - bit : lane)...);
    b = __builtin_shufflevector(first, second, (lane & bit ? sizeof...(lane) + lane : lane + bit)...);
#else
    ((a[lane] = lane & bit ? second[lane - bit] : first[lane]), ...);
    ((b[lane] = lane & bit ? second[lane] : first[lane + bit]), ...);
#endif
}

// Transpose a square of vectors, bit by bit of the numbers of rows and lanes.
template <typename Real, std::size_t bit = 1>
CDN_HOST_DEVICE void transpose(Wide<Real>* square) {
    constexpr std::size_t side = kWide<Real>;
    if constexpr (bit < side) {
        _Pragma("GCC unroll 16") for (std::size_t row = 0; row < side; ++row) if (!(row & bit))
            exchange<bit>(square[row], square[row + bit], std::make_index_sequence<side>{});
        transpose<Real, 2 * bit>(square);
    }
}

// The positive points of tiles of a side, half as many as a tile has rows. Their squares multiply to 1.
template <int tile>
constexpr double kPoints[tile / 2] = {};
template <>
constexpr double kPoints<4>[] = {0.70710678118654752440, 1.41421356237309504880};
template <>
constexpr double kPoints<8>[] = {0.4, 0.8, 1.25, 2.5};

// What transforms multiply with. With M = x (x^2 - p^2) (x^2 - q^2) ... over all points:
template <int tile>
struct Factors {
    static constexpr int kPairs = tile / 2;
    double power[kPairs][tile] = {};  // p^k
    double all[kPairs + 1] = {};  // the coefficients of M / x in x^2
    double over[kPairs] = {};  // 1 over the derivative of M at +-p, by which products there are divided

    constexpr Factors() {
        all[0] = 1;
        for (int p = 0; p < kPairs; ++p) {
            power[p][0] = 1;
            for (int k = 1; k < tile; ++k) power[p][k] = power[p][k - 1] * kPoints<tile>[p];
            for (int k = p + 1; k >= 0; --k)  // times x^2 - p^2
                all[k] = (k > 0 ? all[k - 1] : 0) - (k <= p ? power[p][2] * all[k] : 0);
        }
        for (int p = 0; p < kPairs; ++p) {
            double slope = 2 * power[p][2];
            for (int q = 0; q < kPairs; ++q)
                if (q != p) slope *= power[p][2] - power[q][2];
            over[p] = 1 / slope;
        }
    }
};
template <int tile>
constexpr Factors<tile> kFactors{};

#define CDN_UNROLL _Pragma("GCC unroll 10")

// Each of these maps in one dimension; values at +-p follow each other.

// B': of neighbours. A value at +-p is that of M / (x (x^2 - p^2)), applied to the even neighbours or to the odd ones.
// Points come in pairs p and 1/p, so that this is (x^2 - 1/p^2) times what belongs to the other pair, if there is one:
// x^4 - (q^2 + 1/q^2) x^2 + 1, which pairs share sums for.
template <typename Real, int tile>
struct OfData {
    static_assert(tile == 4 || tile == 8);
    static constexpr int from = tile + 2, to = tile + 2, pairs = tile / 2;
    CDN_HOST_DEVICE void map(const Wide<Real>* d, Wide<Real>* out) {
        constexpr const auto& factors = kFactors<tile>;
        Wide<Real> even[2][2], odd[2][2];  // by the lesser point of a pair: two neighbouring coefficients
        if constexpr (tile == 4) {
            even[0][0] = d[2], even[0][1] = d[4], odd[0][0] = d[1], odd[0][1] = d[3];
            out[0] = times<Real>(factors.all[1], d[2], d[0] + d[4]);
            out[5] = times<Real>(factors.all[1], d[3], d[1] + d[5]);
        } else {
            const Wide<Real> sums[] = {d[1] + d[5], d[2] + d[6], d[3] + d[7], d[4] + d[8]};
            CDN_UNROLL for (int q = 0; q < 2; ++q) {
                const double middle = -(factors.power[q][2] + factors.power[3 - q][2]);
                odd[1 - q][0] = times<Real>(middle, d[3], sums[0]), odd[1 - q][1] = times<Real>(middle, d[5], sums[2]);
                even[1 - q][0] = times<Real>(middle, d[4], sums[1]),
                         even[1 - q][1] = times<Real>(middle, d[6], sums[3]);
            }
            out[0] = times<Real>(factors.all[2], d[4], times<Real>(factors.all[1], sums[1], d[0] + d[8]));
            out[9] = times<Real>(factors.all[2], d[5], times<Real>(factors.all[1], sums[2], d[1] + d[9]));
        }
        CDN_UNROLL for (int p = 0; p < pairs; ++p) {
            const int pair = p < pairs / 2 ? p : pairs - 1 - p;
            const double inverse = -factors.power[pairs - 1 - p][2];
            const Wide<Real> at_even = times<Real>(inverse, even[pair][0], even[pair][1]);
            const Wide<Real> at_odd = times<Real>(inverse, odd[pair][0], odd[pair][1]);
            out[1 + 2 * p] = times<Real>(factors.power[p][1], at_odd, at_even);
            out[2 + 2 * p] = times<Real>(-factors.power[p][1], at_odd, at_even);
        }
    }
};

// G: of the taps of a filter.
template <typename Real, int tile>
struct OfFilter {
    static constexpr int from = kTaps, to = tile + 2;
    CDN_HOST_DEVICE void map(const Wide<Real>* g, Wide<Real>* out) {
        constexpr const auto& factors = kFactors<tile>;
        out[0] = g[0], out[tile + 1] = g[2];
        CDN_UNROLL for (int p = 0; p < tile / 2; ++p) {
            const double odd = factors.power[p][1] * factors.over[p];
            const Wide<Real> even = times<Real>(factors.over[p], times<Real>(factors.power[p][2], g[2], g[0]));
            out[1 + 2 * p] = times<Real>(odd, g[1], even);
            out[2 + 2 * p] = times<Real>(-odd, g[1], even);
        }
    }
};

// A': results from products.
template <typename Real, int tile>
struct ToData {
    static constexpr int from = tile + 2, to = tile;
    CDN_HOST_DEVICE void map(const Wide<Real>* m, Wide<Real>* out) {
        constexpr const auto& factors = kFactors<tile>;
        out[0] = m[0];
        CDN_UNROLL for (int p = 0; p < tile / 2; ++p) {
            const Wide<Real> sum = m[1 + 2 * p] + m[2 + 2 * p], difference = m[1 + 2 * p] - m[2 + 2 * p];
            out[0] += sum;
            CDN_UNROLL for (int k = 1; k < tile; ++k) {
                const Wide<Real>& part = k % 2 ? difference : sum;
                if (p == 0 && k < tile - 1) out[k] = times<Real>(factors.power[p][k], part);
                else out[k] = times<Real>(factors.power[p][k], part, p == 0 ? m[tile + 1] : out[k]);
            }
        }
    }
};

// A: of the gradient by results.
template <typename Real, int tile>
struct OfGradient {
    static constexpr int from = tile, to = tile + 2;
    CDN_HOST_DEVICE void map(const Wide<Real>* y, Wide<Real>* out) {
        constexpr const auto& factors = kFactors<tile>;
        out[0] = y[0], out[tile + 1] = y[tile - 1];
        CDN_UNROLL for (int p = 0; p < tile / 2; ++p) {
            Wide<Real> even = y[tile - 2], odd = y[tile - 1];
            CDN_UNROLL for (int k = tile - 4; k >= 0; k -= 2) {
                even = times<Real>(factors.power[p][2], even, y[k]);
                odd = times<Real>(factors.power[p][2], odd, y[k + 1]);
            }
            out[1 + 2 * p] = times<Real>(factors.power[p][1], odd, even);
            out[2 + 2 * p] = times<Real>(-factors.power[p][1], odd, even);
        }
    }
};

// G': the gradient by a filter from sums of products.
template <typename Real, int tile>
struct ToFilter {
    static constexpr int from = tile + 2, to = kTaps;
    CDN_HOST_DEVICE void map(const Wide<Real>* s, Wide<Real>* out) {
        constexpr const auto& factors = kFactors<tile>;
        out[0] = s[0], out[1] = Wide<Real>{}, out[2] = s[tile + 1];
        CDN_UNROLL for (int p = 0; p < tile / 2; ++p) {
            const Wide<Real> sum = times<Real>(factors.over[p], s[1 + 2 * p] + s[2 + 2 * p]);
            out[0] += sum;
            out[1] = times<Real>(factors.power[p][1] * factors.over[p], s[1 + 2 * p] - s[2 + 2 * p], out[1]);
            out[2] = times<Real>(factors.power[p][2], sum, out[2]);
        }
    }
};

#define CDN_INLINE __attribute__((always_inline))

// Call f(i) for i < count: where there are few, in as many copies of the code.
template <int count, typename F>
CDN_HOST_DEVICE void repeat(F f) {
    if constexpr (count <= 6) {
        CDN_UNROLL for (int i = 0; i < count; ++i) f(i);
    } else {
        _Pragma("GCC unroll 1") for (int i = 0; i < count; ++i) f(i);
    }
}

// Apply a transform along rows and columns of vectors that read(i, j) gives, and call write(i, j, vector).
template <typename Real, typename Transform, typename Read, typename Write>
CDN_HOST_DEVICE void transform(Read read, Write write) {
    constexpr int from = Transform::from, to = Transform::to;
    Wide<Real> rows[from * to];
    repeat<from>([&](int i) CDN_INLINE {
        Wide<Real> in[from];
        CDN_UNROLL for (int j = 0; j < from; ++j) in[j] = read(i, j);
        Transform::map(in, rows + i * to);
    });
    repeat<to>([&](int j) CDN_INLINE {
        Wide<Real> in[from], out[to];
        CDN_UNROLL for (int i = 0; i < from; ++i) in[i] = rows[i * to + j];
        Transform::map(in, out);
        CDN_UNROLL for (int i = 0; i < to; ++i) write(i, j, out[i]);
    });
}

}  // namespace
}  // namespace cdn::CDN_VARIANT
