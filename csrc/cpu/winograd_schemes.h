// How convolutions fall into tiles of minimal filtering: with stride 1 by F(4x4, 3x3) or F(8x8, 3x3), with stride 2 in
// four phases, which are the even and odd rows and columns, whose channels stand side by side: filters of 3x3 by
// F(4x4, 2x2), of 5x5 by F(4x4, 3x3). What phases have in common is summed before results are transformed back.
//
// Of 3x3 filters with stride 2, even columns of an image meet the middle tap of a row of a filter alone, and odd ones
// the two others: one dimension is a convolution of odd columns by 2 taps, 5 products for 4 results, and one of even
// columns by 1 tap. As a polynomial that has no leading coefficient, so that it needs no product at infinity: 9
// products instead of 12, or 81 instead of 144 in two dimensions. Of 5x5 filters, even columns meet three taps and odd
// ones two, which as the last two of three need no product at 0: 11 products instead of 20, or 121 instead of 400.
#pragma once

#include "winograd_transform.h"

namespace cdn::CDN_VARIANT {
namespace {

// Whether rows and columns of a phase are odd.
struct Phase {
    bool odd_y, odd_x;
};

// Phases first .. first + count.
struct PhaseRange {
    int first, count;
};

// Phases in this order are those that have all frequencies of rows or columns, `whole`, or lack one: those that have a
// frequency follow each other.
static constexpr bool is_whole_y(int number) { return number >= 2; }
static constexpr bool is_whole_x(int number) { return number == 1 || number == 2; }
static constexpr PhaseRange phases_of(bool whole_y, bool whole_x) {
    return {whole_y ? 2 : whole_x ? 1 : 0, whole_y && whole_x ? 1 : whole_y || whole_x ? 2 : 4};
}

// Stride 1, which has one phase.
template <int side>
struct Dense {
    static constexpr int kTile = side, kPatch = side + 2, kStep = 1, kPhases = 1;
    static constexpr int kSide = 3;  // side of the filters
    static constexpr int kBefore = 1;  // gradients before a tile of those by images that its patch begins with
    template <typename Real>
    using Data = OfData<Real, side>;
    template <typename Real>
    using Filter = OfFilter<Real, side>;
    template <typename Real>
    using Result = ToData<Real, side>;
    template <typename Real>
    using Gradient = OfGradient<Real, side>;
    template <typename Real>
    using FilterGradient = ToFilter<Real, side>;

    static constexpr Phase phase(int) { return {}; }
    // Pixels before those of a tile that the patch of a phase begins with.
    static constexpr int before(bool) { return 1; }
    static constexpr bool has(Phase, int, int) { return true; }
    static constexpr PhaseRange phases(int, int) { return {0, 1}; }
    static constexpr int tap(bool, int i) { return i; }
};

// 3x3 with stride 2. The points are +-a, +-b and infinity; with these, results err half as much as with 0 in place of
// one.
struct Strided3 {
    static constexpr int kTile = 4, kPatch = 5, kStep = 2, kPhases = 4, kSide = 3, kBefore = 0;
    static constexpr double kA = 0.4, kB = 1.2, kA2 = kA * kA, kB2 = kB * kB;
    // 1 over the derivative of (x^2 - a^2) (x^2 - b^2) at a and at b, which at -a and -b has the other sign.
    static constexpr double kOverA = 1 / (2 * kA * (kA2 - kB2)), kOverB = 1 / (2 * kB * (kB2 - kA2));

    static constexpr Phase phase(int number) { return {is_whole_y(number), is_whole_x(number)}; }
    static constexpr int before(bool odd) { return odd; }
    static constexpr bool has(Phase phase, int i, int j) {
        return (i < kPatch - 1 || phase.odd_y) && (j < kPatch - 1 || phase.odd_x);
    }
    static constexpr PhaseRange phases(int i, int j) { return phases_of(i == kPatch - 1, j == kPatch - 1); }
    // Which tap of a filter is tap i of a phase, -1 if none.
    static constexpr int tap(bool odd, int i) { return odd ? 2 * i : i == 0 ? 1 : -1; }

    template <typename Real>
    struct Data {
        static constexpr int from = 5, to = 5;
        CDN_HOST_DEVICE void map(const Wide<Real>* d, Wide<Real>* out) {
            const Wide<Real> even_a = times<Real>(-kB2, d[1], d[3]), odd_a = times<Real>(-kB2, d[0], d[2]);
            const Wide<Real> even_b = times<Real>(-kA2, d[1], d[3]), odd_b = times<Real>(-kA2, d[0], d[2]);
            out[0] = times<Real>(kA, odd_a, even_a);
            out[1] = times<Real>(-kA, odd_a, even_a);
            out[2] = times<Real>(kB, odd_b, even_b);
            out[3] = times<Real>(-kB, odd_b, even_b);
            out[4] = times<Real>(kA2 * kB2, d[0], times<Real>(-(kA2 + kB2), d[2], d[4]));
        }
    };
    template <typename Real>
    struct Filter {
        static constexpr int from = 2, to = 5;
        CDN_HOST_DEVICE void map(const Wide<Real>* g, Wide<Real>* out) {
            const Wide<Real> odd_a = times<Real>(kA * kOverA, g[1]), odd_b = times<Real>(kB * kOverB, g[1]);
            out[0] = times<Real>(kOverA, g[0], odd_a);
            out[1] = times<Real>(-kOverA, g[0], odd_a);
            out[2] = times<Real>(kOverB, g[0], odd_b);
            out[3] = times<Real>(-kOverB, g[0], odd_b);
            out[4] = g[1];
        }
    };
    template <typename Real>
    struct Result {
        static constexpr int from = 5, to = 4;
        CDN_HOST_DEVICE void map(const Wide<Real>* m, Wide<Real>* out) {
            const Wide<Real> sum_a = m[0] + m[1], difference_a = m[0] - m[1];
            const Wide<Real> sum_b = m[2] + m[3], difference_b = m[2] - m[3];
            out[0] = sum_a + sum_b;
            out[1] = times<Real>(kA, difference_a, times<Real>(kB, difference_b));
            out[2] = times<Real>(kA2, sum_a, times<Real>(kB2, sum_b));
            out[3] = times<Real>(kA2 * kA, difference_a, times<Real>(kB2 * kB, difference_b, m[4]));
        }
    };
    template <typename Real>
    struct Gradient {
        static constexpr int from = 4, to = 5;
        CDN_HOST_DEVICE void map(const Wide<Real>* y, Wide<Real>* out) {
            const Wide<Real> even_a = times<Real>(kA2, y[2], y[0]), odd_a = times<Real>(kA2, y[3], y[1]);
            const Wide<Real> even_b = times<Real>(kB2, y[2], y[0]), odd_b = times<Real>(kB2, y[3], y[1]);
            out[0] = times<Real>(kA, odd_a, even_a);
            out[1] = times<Real>(-kA, odd_a, even_a);
            out[2] = times<Real>(kB, odd_b, even_b);
            out[3] = times<Real>(-kB, odd_b, even_b);
            out[4] = y[3];
        }
    };
    template <typename Real>
    struct FilterGradient {
        static constexpr int from = 5, to = 2;
        CDN_HOST_DEVICE void map(const Wide<Real>* s, Wide<Real>* out) {
            const Wide<Real> sum_a = s[0] + s[1], difference_a = s[0] - s[1];
            const Wide<Real> sum_b = s[2] + s[3], difference_b = s[2] - s[3];
            out[0] = times<Real>(kOverA, difference_a, times<Real>(kOverB, difference_b));
            out[1] = times<Real>(kA * kOverA, sum_a, times<Real>(kB * kOverB, sum_b, s[4]));
        }
    };
};

// 5x5 with stride 2, with the transforms of stride 1: odd rows and columns have only the last two taps of three.
struct Strided5 : Dense<4> {
    static constexpr int kStep = 2, kPhases = 4, kSide = 5;

    static constexpr Phase phase(int number) { return {!is_whole_y(number), !is_whole_x(number)}; }
    static constexpr int before(bool odd) { return odd ? 3 : 2; }
    static constexpr bool has(Phase phase, int i, int j) { return (i > 0 || !phase.odd_y) && (j > 0 || !phase.odd_x); }
    static constexpr PhaseRange phases(int i, int j) { return phases_of(i == 0, j == 0); }
    static constexpr int tap(bool odd, int i) { return odd ? 2 * i - 1 : 2 * i; }
};

// Call f(std::integral_constant) with the number of a phase.
template <typename Scheme, typename F>
CDN_HOST_DEVICE void with_phase(int number, F f) {
    if constexpr (Scheme::kPhases == 1) {
        f(std::integral_constant<int, 0>{});
    } else {
        switch (number) {
            case 0: return f(std::integral_constant<int, 0>{});
            case 1: return f(std::integral_constant<int, 1>{});
            case 2: return f(std::integral_constant<int, 2>{});
            case 3: return f(std::integral_constant<int, 3>{});
        }
    }
}

// Vectors of all frequencies in memory, a fixed distance apart, as what `transform` reads and writes of a phase: what
// it has not is 0, and is not written.
template <typename Real, typename Scheme, int number = -1>
struct Spectrum {
    Real* first;
    std::int64_t distance;

    static constexpr bool here(int i, int j) { return number < 0 || Scheme::has(Scheme::phase(number), i, j); }
    Real* place(int i, int j) const { return first + (i * Scheme::kPatch + j) * distance; }

    CDN_INLINE Wide<Real> operator()(int i, int j) const {
        return here(i, j) ? read<Wide<Real>>(place(i, j)) : Wide<Real>{};
    }
    CDN_INLINE void operator()(int i, int j, Wide<Real> v) const {
        if (here(i, j)) write(place(i, j), v);
    }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
