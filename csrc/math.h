// Logarithm, sine, cosine and Box-Muller, in float by series that compilers turn into vector code.
//
// In float every operation is a correctly rounded IEEE one in a fixed order (no fused multiply-add), so all
// processors give the same bits. Largest errors against double, in units in the last place of the result: log
// 0.94 over [2^-33, 1], sin 0.72 and cos 0.99 over [-pi/4, pi/4] (every third float tried). Double takes the
// C library's functions.
#pragma once

#include <cmath>
#include <cstring>

#include "philox.h"

namespace cdn {

template <typename To, typename From>
CDN_HOST_DEVICE To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

// log u for normal u > 0. With u = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), and s = f / (2 + f):
// log(1 + f) = 2 atanh(s) = 2s + s R, R = 2 (s^2/3 + s^4/5 + ...), and 2s = f - s f keeps the exact f in
// front.
CDN_HOST_DEVICE float log(float u) {
    const std::uint32_t bits = bit_cast<std::uint32_t>(u);
    const std::int32_t exponent = static_cast<std::int32_t>(bits - 0x3f3504f3u) >> 23;  // of u / sqrt(1/2)
    const float e = static_cast<float>(exponent);
    const float f = bit_cast<float>(bits - (static_cast<std::uint32_t>(exponent) << 23)) - 1.0f;
    const float s = f / (2.0f + f), z = s * s;
    const float r = z * (2.0f / 3 + z * (2.0f / 5 + z * (2.0f / 7 + z * (2.0f / 9))));
    const float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;  // e * ln2_high is exact
    return e * ln2_high + (f - (s * (f - r) - e * ln2_low));
}

// sin a and cos a for |a| <= pi / 4 by their Taylor series; the first term left out is below 3e-9.
CDN_HOST_DEVICE void sincos(float a, float& sin, float& cos) {
    const float z = a * a;
    sin = a + a * z * (-1.0f / 6 + z * (1.0f / 120 + z * (-1.0f / 5040 + z * (1.0f / 362880))));
    const float higher = 1.0f / 24 + z * (-1.0f / 720 + z * (1.0f / 40320 + z * (-1.0f / 3628800)));
    cos = 1.0f - (0.5f * z - z * z * higher);
}

CDN_HOST_DEVICE float square_root(float a) { return ::sqrtf(a); }
CDN_HOST_DEVICE double square_root(double a) { return ::sqrt(a); }
CDN_HOST_DEVICE double log(double u) { return ::log(u); }
CDN_HOST_DEVICE void sincos(double a, double& sin, double& cos) {
    sin = ::sin(a);
    cos = ::cos(a);
}

// Two standard normals from two words.
template <typename Real>
CDN_HOST_DEVICE void box_muller(std::uint32_t distance, std::uint32_t direction, Real& first, Real& second) {
    const Real u = static_cast<Real>(distance) * Real(0x1p-32) + Real(0x1p-33);  // in (0, 1]
    const Real radius = square_root(log(u) * Real(-2));
    // The angle 2 pi w / 2^32 = quarter pi/2 + rest, |rest| <= pi/4, is split in integers: nothing is lost.
    const std::uint32_t turn = direction + (1u << 29), quarter = turn >> 30;
    const std::int32_t rest = static_cast<std::int32_t>(turn & ((1u << 30) - 1)) - (1 << 29);
    Real sin, cos;
    sincos(static_cast<Real>(rest) * Real(3.14159265358979323846 * 0x1p-31), sin, cos);
    const bool swap = quarter & 1;
    const Real sign_first = static_cast<Real>(1 - static_cast<std::int32_t>((quarter + 1) & 2));
    const Real sign_second = static_cast<Real>(1 - static_cast<std::int32_t>(quarter & 2));
    first = radius * ((swap ? sin : cos) * sign_first);
    second = radius * ((swap ? cos : sin) * sign_second);
}

}  // namespace cdn
