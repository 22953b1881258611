// SiLU, phi(u) = u s(u) with the logistic function s, and its first two derivatives, from one exponential.
//
// With e = exp(-|u|), the two numbers q = 1 / (1 + e) and p = e q are s and 1 - s, in the order that the sign of u
// says, and neither loses digits to a difference: phi' = s + u p q and phi'' = p q (2 - |u| (q - p)).
#pragma once

#include "gelu.h"

namespace cdn {

// exp(-a) for a >= 0; 0 from where it is below 1e-36.
template <bool brief, typename Real>
CDN_HOST_DEVICE Real fading(Real a) {
    const float last = 84.0f;
    const Real twice = at_most(a, last) * 2;
    return by_sign(last - a, Real(0), decay<brief>(twice, Real(0)));
}
template <bool>
CDN_HOST_DEVICE double fading(double a) {
    return ::exp(-a);
}

// brief as for gelu.
template <bool brief, typename Real>
CDN_HOST_DEVICE Phi<Real> silu(Real u) {
    const Real size = magnitude(u), e = fading<brief>(size);
    const Real q = 1 / (1 + e), p = e * q, s = by_sign(u, p, q), product = p * q;
    return {u * s, multiply_add(u, product, s), product * (2 - size * (q - p))};
}

}  // namespace cdn
