// How elements are stored: load to the computing type, store with one rounding to nearest even. What is brief has 16
// bits, and functions of it need no more digits than that.
#pragma once

#include "../api.h"
#include "../math.h"

namespace cdn {

struct Float32 {
    using Real = float;
    using Element = float;
    static constexpr bool brief = false;
    CDN_HOST_DEVICE Real load(Element a) { return a; }
    CDN_HOST_DEVICE Element store(Real a) { return a; }
};

struct Float64 {
    using Real = double;
    using Element = double;
    static constexpr bool brief = false;
    CDN_HOST_DEVICE Real load(Element a) { return a; }
    CDN_HOST_DEVICE Element store(Real a) { return a; }
};

struct Bfloat16 {
    using Real = float;
    using Element = std::uint16_t;
    static constexpr bool brief = true;
    CDN_HOST_DEVICE Real load(Element a) { return bit_cast<float>(std::uint32_t{a} << 16); }
    CDN_HOST_DEVICE Element store(Real a) {
        const std::uint32_t bits = bit_cast<std::uint32_t>(a);
        const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return static_cast<Element>(a != a ? 0x7fc0 : rounded);
    }
};

// In integers, for not every processor of a variant converts halves.
struct Float16 {
    using Real = float;
    using Element = std::uint16_t;
    static constexpr bool brief = true;
    static constexpr std::uint32_t kRebias = 112u << 23;  // the difference of the exponent biases, 127 - 15

    CDN_HOST_DEVICE Real load(Element a) {
        const std::uint32_t magnitude = std::uint32_t{a} & 0x7fff, sign = (std::uint32_t{a} & 0x8000) << 16;
        const float subnormal = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f;
        const std::uint32_t normal = (magnitude << 13) + kRebias + (magnitude >= 0x7c00 ? kRebias : 0);
        return bit_cast<float>((magnitude < 0x400 ? bit_cast<std::uint32_t>(subnormal) : normal) | sign);
    }

    CDN_HOST_DEVICE Element store(Real a) {
        const std::uint32_t bits = bit_cast<std::uint32_t>(a), magnitude = bits & 0x7fffffff;
        const std::uint32_t normal = (magnitude - kRebias + 0xfff + (magnitude >> 13 & 1)) >> 13;
        // Below 2^-14, adding 1/2 rounds at 2^-24, the unit of half's subnormals.
        const float shifted = bit_cast<float>(magnitude) + 0.5f;
        const std::uint32_t subnormal = bit_cast<std::uint32_t>(shifted) - 0x3f000000;
        std::uint32_t result = magnitude < 0x38800000 ? subnormal : normal;
        result = magnitude >= 0x47800000 ? 0x7c00 : result;
        result = magnitude > 0x7f800000 ? 0x7e00 : result;
        return static_cast<Element>(result | (bits >> 16 & 0x8000));
    }
};

// Call f with the storage of a cdn_type. Static: every variant needs code of its own.
template <typename F>
static inline void with_storage(int type, F f) {
    switch (type) {
        case CDN_FLOAT32: return f(Float32{});
        case CDN_FLOAT64: return f(Float64{});
        case CDN_BFLOAT16: return f(Bfloat16{});
        case CDN_FLOAT16: return f(Float16{});
    }
}

}  // namespace cdn
