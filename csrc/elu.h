// ELU, phi(u) = u for u > 0 and exp(u) - 1 otherwise, and its first two derivatives, from one exponential.
#pragma once

#include "silu.h"

namespace cdn {

// exp(-a) - 1 for a >= 0, given e = exp(-a). Near 0, where e - 1 has lost its digits, the series, whose rest is below
// 1e-8 of it up to a = 1/2.
template <typename Real>
CDN_HOST_DEVICE Real exp_minus_one(Real a, Real e) {
    Real sum = multiply_add(a, Real(-1.0f / 40320), Real(1.0f / 5040));
    sum = multiply_add(a, sum, -1.0f / 720);
    sum = multiply_add(a, sum, 1.0f / 120);
    sum = multiply_add(a, sum, -1.0f / 24);
    sum = multiply_add(a, sum, 1.0f / 6);
    sum = multiply_add(a, sum, -0.5f);
    sum = multiply_add(a, sum, 1.0f);
    return by_sign(a - Real(0.5f), -(a * sum), e - 1);
}
CDN_HOST_DEVICE double exp_minus_one(double a, double) { return ::expm1(-a); }

// brief as for gelu. The second derivative is 0 at 0, as torch has it, and -0 is 0.
template <bool brief, typename Real>
CDN_HOST_DEVICE Phi<Real> elu(Real u) {
    const Real size = magnitude(u), e = fading<brief>(size), sign = u + Real(0);
    const Real zero = Real(0) * (1 / (1 + size));  // or NaN, which has either sign, where u is
    return {by_sign(sign, exp_minus_one(size, e), u) + zero, by_sign(sign, e, Real(1)) + zero,
            by_sign(sign, e, Real(0)) + zero};
}

}  // namespace cdn
