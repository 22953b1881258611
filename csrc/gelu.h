// The exact GELU phi(u) = u Phi(u) and its first two derivatives, from one exponential.
//
// phi' = Phi + u pdf and phi'' = pdf (2 - u^2), Phi and pdf the distribution and density of a standard normal.
// In float, the tail is Phi(-a) = exp(-a^2/2) t P(t), t = k/(k + a), with a polynomial P fitted to a relative error
// of 1.5e-8 over [0, 14]. Double takes the C library's functions. Fused multiply-adds stand where they are wanted and
// nowhere else: a compiler that fuses at will makes phi(u) - phi(u) differ from 0.
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

// exp(-z) for 0 <= z; beyond 87 it stays at exp(-87) = 1.6e-38. exp(-z) = 2^-n exp(r), |r| <= ln(2)/2, and the
// first term left out of the series of exp(r) is below 6e-9.
CDN_HOST_DEVICE float exp_minus(float z) {
    const float clamped = z < 87.0f ? z : 87.0f;
    const float n = static_cast<float>(static_cast<std::int32_t>(clamped * 0x1.715476p+0f + 0.5f));
    const float r = multiply_add(n, 0x1.7f7d1cp-20f, n * 0x1.62e4p-1f - clamped);
    float p = 1.0f / 5040;
    p = multiply_add(p, r, 1.0f / 720);
    p = multiply_add(p, r, 1.0f / 120);
    p = multiply_add(p, r, 1.0f / 24);
    p = multiply_add(p, r, 1.0f / 6);
    p = multiply_add(p, r, 0.5f);
    p = multiply_add(p, r, 1.0f);
    p = multiply_add(p, r, 1.0f);
    return bit_cast<float>(bit_cast<std::int32_t>(p) - (static_cast<std::int32_t>(n) << 23));
}

// exp(-u^2/2); what u * u loses to rounding is put back, for it would be multiplied by u^2.
CDN_HOST_DEVICE float bell(float u) {
    const float square = u * u, lost = multiply_add(u, u, -square);
    const float e = exp_minus(square * 0.5f);
    return multiply_add(e, lost * -0.5f, e);
}
CDN_HOST_DEVICE double bell(double u) { return ::exp(u * u * -0.5); }

// Phi(-a) for a >= 0, given e = exp(-a^2/2).
CDN_HOST_DEVICE float tail(float a, float e) {
    const float t = 3.75f / (3.75f + a);
    float p = 0.030272865667939186f;
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
CDN_HOST_DEVICE double tail(double a, double) { return 0.5 * ::erfc(a * 0.70710678118654752440); }

template <typename Real>
struct Gelu {
    Real value, first, second;
};

template <typename Real>
CDN_HOST_DEVICE Gelu<Real> gelu(Real u) {
    const Real e = bell(u);
    const Real below = tail(u < 0 ? -u : u, e);
    const Real distribution = u < 0 ? below : Real(1) - below;
    const Real density = e * Real(0.39894228040143267794);
    return {u * distribution, distribution + u * density, density * (Real(2) - u * u)};
}

}  // namespace cdn
