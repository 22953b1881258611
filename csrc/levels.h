// Noise levels: computed in double and rounded once, or in integers, so that every backend draws the same.
#pragma once

#include <cmath>

#include "api.h"
#include "philox.h"

namespace cdn {

// A law of noise levels, as all images share it.
struct Levels {
    int law, clean;
    double low, high, log_low, log_range;
    double clean_share;   // in units of 2^-32
    std::uint64_t share;  // the same, rounded

    bool known() const {
        return law >= CDN_LOG_UNIFORM && law <= CDN_FIXED && (clean == CDN_INDEPENDENT || clean == CDN_STRATIFIED);
    }
};

static inline Levels levels_of(int law, double low, double high, double clean_share, int clean) {
    const double log_low = std::log(low), scaled = clean_share * 0x1p32;
    const auto share = static_cast<std::uint64_t>(std::rint(scaled));
    return {law, clean, low, high, log_low, std::log(high) - log_low, scaled, share};
}

// Whether the image at a place stays clean by the law that meets the share to within one image: whether a multiple of
// 2^32 lies in (place share + u, (place + 1) share + u], with u one word for the whole batch.
CDN_HOST_DEVICE bool stays_clean(std::uint32_t place, std::uint64_t share, Key key) {
    const std::uint32_t u = philox(std::uint32_t{1}, std::uint32_t{0}, key, kLevelStream).w0;
    const std::uint32_t position = place * static_cast<std::uint32_t>(share) + u;
    return position + share >= std::uint64_t{1} << 32;
}

// The noise level of the image at a place.
CDN_HOST_DEVICE double level_at(std::uint32_t place, const Levels& levels, Key key) {
    const auto w = philox(std::uint32_t{0}, place, key, kLevelStream);
    const bool independent = levels.clean == CDN_INDEPENDENT;
    if (independent ? w.w1 < levels.clean_share : stays_clean(place, levels.share, key)) return 0.0;
    const double position = (w.w0 + 0.5) * 0x1p-32;
    if (levels.law == CDN_LOG_UNIFORM) return ::exp(levels.log_low + position * levels.log_range);
    if (levels.law == CDN_UNIFORM) return levels.low + position * (levels.high - levels.low);
    return levels.high;
}

}  // namespace cdn
