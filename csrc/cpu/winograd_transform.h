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

// Each of these maps `from[i * from_step]` to `to[i * to_step]` in one dimension.

// B': of neighbours.
template <typename Real>
CDN_HOST_DEVICE void transform_data(const Wide<Real>* from, int step, Wide<Real>* to, int to_step) {
    const Wide<Real> d0 = from[0], d1 = from[step], d2 = from[2 * step], d3 = from[3 * step], d4 = from[4 * step];
    const Wide<Real> d5 = from[5 * step];
    const Wide<Real> even_a = times<Real>(-kB2, d2, d4), odd_a = times<Real>(-kB2, d1, d3);
    const Wide<Real> even_b = times<Real>(-kA2, d2, d4), odd_b = times<Real>(-kA2, d1, d3);
    to[0] = times<Real>(-(kA2 + kB2), d2, d0 + d4);
    to[to_step] = times<Real>(kA, odd_a, even_a);
    to[2 * to_step] = times<Real>(-kA, odd_a, even_a);
    to[3 * to_step] = times<Real>(kB, odd_b, even_b);
    to[4 * to_step] = times<Real>(-kB, odd_b, even_b);
    to[5 * to_step] = times<Real>(-(kA2 + kB2), d3, d1 + d5);
}

// G: of the taps of a filter.
template <typename Real>
CDN_HOST_DEVICE void transform_filter(const Wide<Real>* from, int step, Wide<Real>* to, int to_step) {
    const Wide<Real> g0 = from[0], g1 = from[step], g2 = from[2 * step];
    const Wide<Real> even_a = times<Real>(kOverA, times<Real>(kA2, g2, g0));
    const Wide<Real> even_b = times<Real>(kOverB, times<Real>(kB2, g2, g0));
    to[0] = g0;
    to[to_step] = times<Real>(kA * kOverA, g1, even_a);
    to[2 * to_step] = times<Real>(-kA * kOverA, g1, even_a);
    to[3 * to_step] = times<Real>(kB * kOverB, g1, even_b);
    to[4 * to_step] = times<Real>(-kB * kOverB, g1, even_b);
    to[5 * to_step] = g2;
}

// A': results from products.
template <typename Real>
CDN_HOST_DEVICE void inverse_data(const Wide<Real>* from, int step, Wide<Real>* to, int to_step) {
    const Wide<Real> sum_a = from[step] + from[2 * step], difference_a = from[step] - from[2 * step];
    const Wide<Real> sum_b = from[3 * step] + from[4 * step], difference_b = from[3 * step] - from[4 * step];
    to[0] = from[0] + sum_a + sum_b;
    to[to_step] = times<Real>(kA, difference_a, times<Real>(kB, difference_b));
    to[2 * to_step] = times<Real>(kA2, sum_a, times<Real>(kB2, sum_b));
    to[3 * to_step] = times<Real>(kA3, difference_a, times<Real>(kB3, difference_b, from[5 * step]));
}

// A: of the gradient by results.
template <typename Real>
CDN_HOST_DEVICE void transform_gradient(const Wide<Real>* from, int step, Wide<Real>* to, int to_step) {
    const Wide<Real> y0 = from[0], y1 = from[step], y2 = from[2 * step], y3 = from[3 * step];
    const Wide<Real> even_a = times<Real>(kA2, y2, y0), odd_a = times<Real>(kA2, y3, y1);
    const Wide<Real> even_b = times<Real>(kB2, y2, y0), odd_b = times<Real>(kB2, y3, y1);
    to[0] = y0;
    to[to_step] = times<Real>(kA, odd_a, even_a);
    to[2 * to_step] = times<Real>(-kA, odd_a, even_a);
    to[3 * to_step] = times<Real>(kB, odd_b, even_b);
    to[4 * to_step] = times<Real>(-kB, odd_b, even_b);
    to[5 * to_step] = y3;
}

// G': the gradient by a filter from sums of products.
template <typename Real>
CDN_HOST_DEVICE void inverse_filter(const Wide<Real>* from, int step, Wide<Real>* to, int to_step) {
    const Wide<Real> sum_a = times<Real>(kOverA, from[step] + from[2 * step]);
    const Wide<Real> sum_b = times<Real>(kOverB, from[3 * step] + from[4 * step]);
    const Wide<Real> difference_a = from[step] - from[2 * step], difference_b = from[3 * step] - from[4 * step];
    to[0] = from[0] + sum_a + sum_b;
    to[to_step] = times<Real>(kA * kOverA, difference_a, times<Real>(kB * kOverB, difference_b));
    to[2 * to_step] = times<Real>(kA2, sum_a, times<Real>(kB2, sum_b, from[5 * step]));
}

// Apply a transform of vectors [from][from] to [to][to] along rows and then along columns. Constant bounds, unrolled.
#define CDN_IN_TWO_DIMENSIONS(name, map, from_size, to_size)                                                     \
    template <typename Real>                                                                                     \
    CDN_HOST_DEVICE void name(const Wide<Real>* from, Wide<Real>* to) {                                          \
        Wide<Real> rows[from_size * to_size];                                                                    \
        _Pragma("GCC unroll 6") for (int i = 0; i < from_size; ++i)                                              \
            map<Real>(from + i * from_size, 1, rows + i * to_size, 1);                                           \
        _Pragma("GCC unroll 6") for (int j = 0; j < to_size; ++j) map<Real>(rows + j, to_size, to + j, to_size); \
    }
CDN_IN_TWO_DIMENSIONS(transform_patch, transform_data, kPatch, kPatch)
CDN_IN_TWO_DIMENSIONS(transform_taps, transform_filter, kTaps, kPatch)
CDN_IN_TWO_DIMENSIONS(transform_gradients, transform_gradient, kTile, kPatch)
CDN_IN_TWO_DIMENSIONS(inverse_tile, inverse_data, kPatch, kTile)
CDN_IN_TWO_DIMENSIONS(inverse_taps, inverse_filter, kPatch, kTaps)
#undef CDN_IN_TWO_DIMENSIONS

}  // namespace
}  // namespace cdn::CDN_VARIANT
