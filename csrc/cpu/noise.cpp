// The C interface of the noise kernels.
#include <vector>

#include "dispatch.h"

using namespace cdn;

int cdn_add_noise(const void* x, const void* sigma, void* y, int type, std::int64_t batch, std::int64_t size,
                  std::int64_t channels, std::uint64_t seed, std::uint64_t offset, std::int64_t first,
                  const std::int64_t* places, int threads, int capability) {
    const Variant* variant = find(capability);
    if (!variant || type < CDN_FLOAT32 || type > CDN_FLOAT16) return 1;
    if (batch < 0 || size < 0 || channels < 0) return 1;
    const NoiseJob job{x, sigma, y, type, batch, size, channels, {seed, offset}, {first, places}};
    split(job.units(), batch * size, threads,
          [&](std::int64_t first, std::int64_t last) { variant->noise->add_noise(job, first, last); });
    return 0;
}

int cdn_sample_noise(const void* x, void* sigma, void* y, int type, std::int64_t batch, std::int64_t size,
                     std::int64_t channels, int law, double low, double high, double clean_share, int clean,
                     std::uint64_t seed, std::uint64_t offset, std::int64_t first, const std::int64_t* places,
                     int threads, int capability) {
    const int level_type = type == CDN_FLOAT64 ? CDN_FLOAT64 : CDN_FLOAT32;
    return cdn_sample_sigma(sigma, level_type, batch, law, low, high, clean_share, clean, seed, offset, first, places)
        || cdn_add_noise(x, sigma, y, type, batch, size, channels, seed, offset, first, places, threads, capability);
}

int cdn_random_words(std::uint32_t* words, std::int64_t batch, std::int64_t blocks, int stream, std::uint64_t seed,
                     std::uint64_t offset, int capability) {
    const Variant* variant = find(capability);
    if (!variant || (stream != kNormalStream && stream != kLevelStream) || batch < 0 || blocks < 0) return 1;
    variant->noise->random_words(words, batch, blocks, {seed, offset}, static_cast<Stream>(stream));
    return 0;
}

int cdn_denoising(const void* score, const void* sigma, const void* factors, void* errors, void* gradient, int type,
                  std::int64_t batch, std::int64_t size, std::int64_t channels, std::uint64_t seed,
                  std::uint64_t offset, std::int64_t first, const std::int64_t* places, int threads, int capability) {
    const Variant* variant = find(capability);
    if (!variant || type < CDN_FLOAT32 || type > CDN_FLOAT16) return 1;
    if (batch < 0 || size < 1 || channels < 0 || !errors == !gradient) return 1;
    const NoiseJob noise{score, sigma, gradient, type, batch, size, channels, {seed, offset}, {first, places}};
    ResidualJob job{noise, factors, nullptr};
    // Sums of units, then of images: in an order that no number of threads changes.
    std::vector<double> sums(errors ? job.noise.units() : 0);
    if (errors) job.partial_sums = sums.data();
    split(job.noise.units(), batch * size, threads,
          [&](std::int64_t first, std::int64_t last) { variant->noise->residual(job, first, last); });
    for (std::int64_t image = 0; errors && image < batch; ++image) {
        double sum = 0;
        for (std::int64_t i = 0; i < job.noise.units_per_image(); ++i)
            sum += sums[image * job.noise.units_per_image() + i];
        const double mean = sum / static_cast<double>(size);
        if (type == CDN_FLOAT64) static_cast<double*>(errors)[image] = mean;
        else static_cast<float*>(errors)[image] = static_cast<float>(mean);
    }
    return 0;
}
