// Up to where a mean square counts as 0: cdn_kernels/floors.py derives it, and a test compares the two.
#pragma once

namespace cdn {

template <typename Real>
constexpr Real kSquareFloor = Real(0x1p-54);
template <>
constexpr double kSquareFloor<double> = 0x1p-438;

}  // namespace cdn
