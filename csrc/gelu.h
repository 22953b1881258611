// The exact GELU phi(u) = u Phi(u) and its first two derivatives, from one exponential.
//
// phi' = Phi + u pdf and phi'' = pdf (2 - u^2), Phi and pdf the distribution and density of a standard normal.
// In float, the tail Phi(-a) = exp(-a^2/2) t P(t), t = k/(k + a), with a polynomial P fitted to a relative error
// of 1.5e-8 over [0, 14]; so phi has a few units in the last place of error near 0, 10 up to |u| = 4, and the
// error of a^2/2 in its exponent beyond, where phi itself fades. Double takes the C library's functions.
#pragma once

#include <cmath>

#include "math.h"

namespace cdn {

// exp(-z) for 0 <= z; beyond 87 it stays at exp(-87) = 1.6e-38. exp(-z) = 2^-n exp(r), |r| <= ln(2)/2.
CDN_HOST_DEVICE float exp_minus(float z) {
    const float clamped = z < 87.0f ? z : 87.0f;
    const float n = static_cast<float>(static_cast<std::int32_t>(clamped * 0x1.715476p+0f + 0.5f));
    const float r = n * 0x1.62e4p-1f - clamped + n * 0x1.7f7d1cp-20f;
    const float p = 1.0f + r * (1.0f + r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 +
                    r * (1.0f / 720))))));
    return bit_cast<float>(bit_cast<std::int32_t>(p) - (static_cast<std::int32_t>(n) << 23));
}
CDN_HOST_DEVICE double exp_minus(double z) { return ::exp(-z); }

// Phi(-a) / exp(-a^2/2) for a >= 0; e is that exponential.
CDN_HOST_DEVICE float tail(float a, float e) {
    const float t = 3.75f / (3.75f + a);
    const float p = 0.10640031844377518f + t * (0.10602681338787079f + t * (0.10231086611747742f +
                    t * (0.06455504149198532f + t * (0.12730096280574799f + t * (-0.10002262890338898f +
                    t * (0.20164258778095245f + t * (-0.1384868174791336f + t * 0.030272865667939186f)))))));
    return e * (t * p);
}
CDN_HOST_DEVICE double tail(double a, double) { return 0.5 * ::erfc(a * 0.70710678118654752440); }

template <typename Real>
struct Gelu {
    Real value, first, second;
};

template <typename Real>
CDN_HOST_DEVICE Gelu<Real> gelu(Real u) {
    const Real a = u < 0 ? -u : u, square = u * u;
    const Real e = exp_minus(square * Real(0.5));
    const Real below = tail(a, e);
    const Real distribution = u < 0 ? below : Real(1) - below;
    const Real density = e * Real(0.39894228040143267794);
    return {u * distribution, distribution + u * density, density * (Real(2) - square)};
}

}  // namespace cdn
