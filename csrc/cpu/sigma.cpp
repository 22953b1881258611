// Noise levels, one per image: computed in double and rounded once, so that every backend draws the same.
#include "../api.h"
#include "../math.h"

namespace {

using namespace cdn;

template <typename Real>
void sample(Real* sigma, std::int64_t batch, int law, double low, double high, double clean_share, Key key) {
    const double log_low = std::log(low), log_range = std::log(high) - log_low;
    for (std::int64_t image = 0; image < batch; ++image) {
        const auto w = philox(std::uint32_t{0}, static_cast<std::uint32_t>(image), key, kLevelStream);
        const double position = (w.w0 + 0.5) * 0x1p-32;
        double level = high;
        if (law == CDN_LOG_UNIFORM) level = std::exp(log_low + position * log_range);
        if (law == CDN_UNIFORM) level = low + position * (high - low);
        sigma[image] = static_cast<Real>(w.w1 < clean_share * 0x1p32 ? 0.0 : level);
    }
}

}  // namespace

int cdn_sample_sigma(void* sigma, int type, std::int64_t batch, int law, double low, double high, double clean_share,
                     std::uint64_t seed, std::uint64_t offset) {
    if (batch < 0 || law < CDN_LOG_UNIFORM || law > CDN_FIXED) return 1;
    const Key key{seed, offset};
    if (type == CDN_FLOAT64) sample(static_cast<double*>(sigma), batch, law, low, high, clean_share, key);
    else if (type == CDN_FLOAT32) sample(static_cast<float*>(sigma), batch, law, low, high, clean_share, key);
    else return 1;
    return 0;
}
