// Noise levels, one per image.
#include "../levels.h"

namespace {

using namespace cdn;

template <typename Real>
void sample(Real* sigma, std::int64_t batch, const Levels& levels, Key key, Places places) {
    for (std::int64_t image = 0; image < batch; ++image)
        sigma[image] = static_cast<Real>(level_at(places.of(image), levels, key));
}

}  // namespace

int cdn_sample_sigma(void* sigma, int type, std::int64_t batch, int law, double low, double high, double clean_share,
                     int clean, std::uint64_t seed, std::uint64_t offset, std::int64_t first,
                     const std::int64_t* places) {
    const Levels levels = levels_of(law, low, high, clean_share, clean);
    if (batch < 0 || !levels.known()) return 1;
    const Key key{seed, offset};
    const Places where{first, places};
    if (type == CDN_FLOAT64) sample(static_cast<double*>(sigma), batch, levels, key, where);
    else if (type == CDN_FLOAT32) sample(static_cast<float*>(sigma), batch, levels, key, where);
    else return 1;
    return 0;
}
