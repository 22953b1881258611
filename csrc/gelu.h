// The exact GELU phi(u) = u Phi(u) and its first two derivatives, from one exponential.
//
// phi' = Phi + u pdf and phi'' = pdf (2 - u^2), Phi and pdf the distribution and density of a standard normal.
// In float, the tail is Phi(-a) = exp(-a^2/2) t P(t), t = k/(k + a), with polynomials fitted over [0, 13.2]. Relative
// errors of exp and P: 3e-9 and 1.5e-8, or 1e-7 and 7e-7 if brief, for numbers of 16 bits: below 2^-20 together, where
// half a unit in the last place of such a number is 2^-12 or 2^-9. On a GPU what is brief takes the exponential of the
// hardware, within 2^-19 as far as a = 5 and 2^-17 everywhere. Double takes the C library's functions. Fused
// multiply-adds stand where they are wanted and nowhere else: a compiler that fuses at will makes phi(u) - phi(u)
// differ from 0.
#pragma once

#include <cmath>

#include "math.h"

namespace cdn {

// a b + c, in one rounding where the processor has an instruction for it.
CDN_HOST_DEVICE float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__CUDACC__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
CDN_HOST_DEVICE double multiply_add(double a, double b, double c) {
#ifdef __CUDA_ARCH__
    return ::fma(a, b, c);
#else
    return a * b + c;
#endif
}

// Where both tails are told from 0: farther out, they stay what they are there or smaller, below 1e-34.
CDN_HOST_DEVICE float farthest(float) { return 13.0f; }
CDN_HOST_DEVICE double farthest(double) { return 40.0; }

template <typename Real>
CDN_HOST_DEVICE Real quotient(float k, Real a) {
    return k / a;
}
#ifdef __CUDA_ARCH__
// Within two units in the last place, without the branches of a division that rounds correctly.
CDN_HOST_DEVICE float quotient(float k, float a) { return __fdividef(k, a); }
#endif

// What is left to tell apart a number from a pack of them (cpu/pack.h).
CDN_HOST_DEVICE float magnitude(float u) { return std::fabs(u); }
CDN_HOST_DEVICE double magnitude(double u) { return std::fabs(u); }
CDN_HOST_DEVICE float at_most(float a, float limit) { return limit < a ? limit : a; }
CDN_HOST_DEVICE double at_most(double a, double limit) { return limit < a ? limit : a; }
// max(u, 0), by integers: they order like floats, and have an instruction for it that floats with NaN lack.
CDN_HOST_DEVICE float positive_part(float u) {
    const std::int32_t bits = bit_cast<std::int32_t>(u);
    return bit_cast<float>(bits > 0 ? bits : 0);
}
CDN_HOST_DEVICE double positive_part(double u) { return u > 0 ? u : 0; }
CDN_HOST_DEVICE float by_sign(float u, float negative, float positive) { return u < 0 ? negative : positive; }
CDN_HOST_DEVICE double by_sign(double u, double negative, double positive) { return u < 0 ? negative : positive; }
// a 2^-n, n in the lowest bits of another number.
CDN_HOST_DEVICE float halve(float a, float times) {
    return bit_cast<float>(bit_cast<std::uint32_t>(a) - (bit_cast<std::uint32_t>(times) << 23));
}

// exp(-(square + lost) / 2) for 0 <= square <= 169 and a tiny lost, as 2^-n exp(r/2) with |r| <= ln 2. Adding 3 2^22
// rounds to the integer n and leaves it in the lowest bits.
template <bool brief, typename Real>
CDN_HOST_DEVICE Real decay(Real square, Real lost) {
    const float magic = 0x1.8p23f;
    const Real shifted = multiply_add(square, 0x1.715476p-1f, magic), n = shifted - magic;
    Real p, r;
#ifdef __CUDA_ARCH__
    if constexpr (brief) return ::exp2f(square * -0.72134752044448170368f);
#endif
    if constexpr (brief) {
        r = multiply_add(n, 0x1.62e43p+0f, -square);
        p = 0.00025977095356211066f;
        p = multiply_add(p, r, 0.002618163824081421f);
        p = multiply_add(p, r, 0.02083389274775982f);
        p = multiply_add(p, r, 0.1249980702996254f);
    } else {
        // n times the first part of 2 ln 2 is exact, and so is the difference.
        r = multiply_add(n, 0x1.7f7d1cp-19f, multiply_add(n, 0x1.62e4p+0f, -square)) - lost;
        p = 2.1593961719190702e-05f;
        p = multiply_add(p, r, 0.00026152143254876137f);
        p = multiply_add(p, r, 0.002604267094284296f);
        p = multiply_add(p, r, 0.020833151414990425f);
        p = multiply_add(p, r, 0.1249999850988388f);
    }
    p = multiply_add(p, r, 0.5f);
    p = multiply_add(p, r, 1.0f);
    return halve(p, shifted);
}

// exp(-a^2/2) for 0 <= a <= 13.
template <bool brief, typename Real>
CDN_HOST_DEVICE Real bell(Real a) {
    const Real square = a * a;
    if constexpr (brief) return decay<true>(square, square);
    else return decay<false>(square, multiply_add(a, a, -square));  // what a * a lost is put back
}
template <bool>
CDN_HOST_DEVICE double bell(double a) {
    return ::exp(a * a * -0.5);
}

// Phi(-a) for a >= 0, given e = exp(-a^2/2).
template <bool brief, typename Real>
CDN_HOST_DEVICE Real tail(Real a, Real e) {
    if constexpr (brief) {
        const Real t = quotient(3.8125f, 3.8125f + a);
        Real p = -0.07088417559862137f;
        p = multiply_add(p, t, 0.21433144807815552f);
        p = multiply_add(p, t, -0.08921543508768082f);
        p = multiply_add(p, t, 0.15644970536231995f);
        p = multiply_add(p, t, 0.07726126909255981f);
        p = multiply_add(p, t, 0.10759516060352325f);
        p = multiply_add(p, t, 0.10446226596832275f);
        return e * (t * p);
    } else {
        const Real t = quotient(3.75f, 3.75f + a);
        Real p = 0.030272865667939186f;
        p = multiply_add(p, t, -0.1384868174791336f);
        p = multiply_add(p, t, 0.20164258778095245f);
        p = multiply_add(p, t, -0.10002262890338898f);
        p = multiply_add(p, t, 0.12730096280574799f);
        p = multiply_add(p, t, 0.06455504149198532f);
        p = multiply_add(p, t, 0.10231086611747742f);
        p = multiply_add(p, t, 0.10602681338787079f);
        p = multiply_add(p, t, 0.10640031844377518f);
        return e * (t * p);
    }
}
template <bool>
CDN_HOST_DEVICE double tail(double a, double) {
    return 0.5 * ::erfc(a * 0.70710678118654752440);
}

// A function at some number, and its first two derivatives.
template <typename Real>
struct Phi {
    Real value, first, second;
};

// brief: u has 16 bits, so that its square is exact, and the result need not be.
template <bool brief, typename Real>
CDN_HOST_DEVICE Phi<Real> gelu(Real u) {
    const Real size = magnitude(u), a = at_most(size, farthest(u));
    const Real e = bell<brief>(a), below = tail<brief>(size, e);
    const Real density = e * Real(0.39894228040143267794);
    const Real slope = below - a * density;  // phi'(-a)
    const Real bend = multiply_add(below, Real(0), 2 - a * a);  // NaN with u, which a may not be
    return {multiply_add(-a, below, positive_part(u)), by_sign(u, slope, 1 - slope), density * bend};
}

}  // namespace cdn
