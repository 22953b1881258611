// The transforms of Winograd's minimal filtering F(4x4, 3x3): 4x4 results of a 3x3 filter from 36 products instead of
// 144.
//
// A polynomial of degree 5 is known by its values at 0, +-a, +-b and its leading coefficient ("at infinity"). With
// a = 1/sqrt(2) and b = sqrt(2) results err half as much as with the usual 1 and 2. In one dimension, 4 results are
// A' ((G g) * (B' d)) of 3 taps g and 6 neighbours d; in two, every transform is applied along columns and rows. The
// gradient by the filter is the transpose, G' ((A y) * (B' d)), and shares B' d.
//
// Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016 (the algorithm); Barabasz et al.,
// "Error analysis and improving the accuracy of Winograd convolution for deep neural networks", 2020 (points).
#pragma once

#include <cstdint>
#include <cstring>

#include "pack.h"

namespace cdn::CDN_VARIANT {
namespace {

constexpr std::int64_t kTile = 4, kTaps = 3, kPatch = kTile + kTaps - 1, kFrequencies = kPatch * kPatch;

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

constexpr double kA = 0.70710678118654752440, kB = 1.41421356237309504880;
constexpr double kA2 = 0.5, kB2 = 2, kA3 = kA2 * kA, kB3 = kB2 * kB;
// By what the products at +-a and +-b are divided, the derivative of x (x^2 - a^2) (x^2 - b^2) there.
constexpr double kOverA = 1 / (2 * kA2 * (kA2 - kB2)), kOverB = 1 / (2 * kB2 * (kB2 - kA2));

// Each of these maps in one dimension.

// B': of neighbours.
template <typename Real>
struct OfData {
    static constexpr int from = kPatch, to = kPatch;
    CDN_HOST_DEVICE void map(const Wide<Real>* d, Wide<Real>* out) {
        const Wide<Real> even_a = times<Real>(-kB2, d[2], d[4]), odd_a = times<Real>(-kB2, d[1], d[3]);
        const Wide<Real> even_b = times<Real>(-kA2, d[2], d[4]), odd_b = times<Real>(-kA2, d[1], d[3]);
        out[0] = times<Real>(-(kA2 + kB2), d[2], d[0] + d[4]);
        out[1] = times<Real>(kA, odd_a, even_a);
        out[2] = times<Real>(-kA, odd_a, even_a);
        out[3] = times<Real>(kB, odd_b, even_b);
        out[4] = times<Real>(-kB, odd_b, even_b);
        out[5] = times<Real>(-(kA2 + kB2), d[3], d[1] + d[5]);
    }
};

// G: of the taps of a filter.
template <typename Real>
struct OfFilter {
    static constexpr int from = kTaps, to = kPatch;
    CDN_HOST_DEVICE void map(const Wide<Real>* g, Wide<Real>* out) {
        const Wide<Real> even_a = times<Real>(kOverA, times<Real>(kA2, g[2], g[0]));
        const Wide<Real> even_b = times<Real>(kOverB, times<Real>(kB2, g[2], g[0]));
        out[0] = g[0];
        out[1] = times<Real>(kA * kOverA, g[1], even_a);
        out[2] = times<Real>(-kA * kOverA, g[1], even_a);
        out[3] = times<Real>(kB * kOverB, g[1], even_b);
        out[4] = times<Real>(-kB * kOverB, g[1], even_b);
        out[5] = g[2];
    }
};

// A': results from products.
template <typename Real>
struct ToData {
    static constexpr int from = kPatch, to = kTile;
    CDN_HOST_DEVICE void map(const Wide<Real>* m, Wide<Real>* out) {
        const Wide<Real> sum_a = m[1] + m[2], difference_a = m[1] - m[2];
        const Wide<Real> sum_b = m[3] + m[4], difference_b = m[3] - m[4];
        out[0] = m[0] + sum_a + sum_b;
        out[1] = times<Real>(kA, difference_a, times<Real>(kB, difference_b));
        out[2] = times<Real>(kA2, sum_a, times<Real>(kB2, sum_b));
        out[3] = times<Real>(kA3, difference_a, times<Real>(kB3, difference_b, m[5]));
    }
};

// A: of the gradient by results.
template <typename Real>
struct OfGradient {
    static constexpr int from = kTile, to = kPatch;
    CDN_HOST_DEVICE void map(const Wide<Real>* y, Wide<Real>* out) {
        const Wide<Real> even_a = times<Real>(kA2, y[2], y[0]), odd_a = times<Real>(kA2, y[3], y[1]);
        const Wide<Real> even_b = times<Real>(kB2, y[2], y[0]), odd_b = times<Real>(kB2, y[3], y[1]);
        out[0] = y[0];
        out[1] = times<Real>(kA, odd_a, even_a);
        out[2] = times<Real>(-kA, odd_a, even_a);
        out[3] = times<Real>(kB, odd_b, even_b);
        out[4] = times<Real>(-kB, odd_b, even_b);
        out[5] = y[3];
    }
};

// G': the gradient by a filter from sums of products.
template <typename Real>
struct ToFilter {
    static constexpr int from = kPatch, to = kTaps;
    CDN_HOST_DEVICE void map(const Wide<Real>* s, Wide<Real>* out) {
        const Wide<Real> sum_a = times<Real>(kOverA, s[1] + s[2]), sum_b = times<Real>(kOverB, s[3] + s[4]);
        const Wide<Real> difference_a = s[1] - s[2], difference_b = s[3] - s[4];
        out[0] = s[0] + sum_a + sum_b;
        out[1] = times<Real>(kA * kOverA, difference_a, times<Real>(kB * kOverB, difference_b));
        out[2] = times<Real>(kA2, sum_a, times<Real>(kB2, sum_b, s[5]));
    }
};

// Apply a transform along rows and columns of vectors that read(i, j) gives, and call write(i, j, vector).
template <typename Real, template <typename> class Transform, typename Read, typename Write>
CDN_HOST_DEVICE void transform(Read read, Write write) {
    constexpr int from = Transform<Real>::from, to = Transform<Real>::to;
    Wide<Real> rows[from * to];
#pragma GCC unroll 6
    for (int i = 0; i < from; ++i) {
        Wide<Real> in[from];
#pragma GCC unroll 6
        for (int j = 0; j < from; ++j) in[j] = read(i, j);
        Transform<Real>::map(in, rows + i * to);
    }
#pragma GCC unroll 6
    for (int j = 0; j < to; ++j) {
        Wide<Real> in[from], out[to];
#pragma GCC unroll 6
        for (int i = 0; i < from; ++i) in[i] = rows[i * to + j];
        Transform<Real>::map(in, out);
#pragma GCC unroll 6
        for (int i = 0; i < to; ++i) write(i, j, out[i]);
    }
}

#define CDN_INLINE __attribute__((always_inline))

// Vectors of 36 frequencies in memory, a fixed distance apart, as what `transform` reads and writes.
template <typename Real>
struct Frequencies {
    Real* first;
    std::int64_t distance;

    CDN_INLINE Wide<Real> operator()(int i, int j) const {
        return read<Wide<Real>>(first + (i * kPatch + j) * distance);
    }
    CDN_INLINE void operator()(int i, int j, Wide<Real> v) const { write(first + (i * kPatch + j) * distance, v); }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
