// The C interface: checks, the choice of a variant, and the split of work over threads.
//
// This file and sigma.cpp are compiled without processor flags and never run anything that needs them.
#include <cstdlib>
#include <cstring>

#include "variants.h"

namespace {

using namespace cdn;

// Below this many elements, waking a second thread costs more than it saves.
constexpr std::int64_t kSerial = 1 << 15;

int supported() {
#ifdef CDN_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return CDN_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return CDN_AVX2;
#endif
    return CDN_SCALAR;
}

int choose() {
    const char* names[] = {"scalar", "avx2", "avx512"};
    const int best = supported();
    if (const char* wanted = std::getenv("CDN_CPU_CAPABILITY"))
        for (int capability = 0; capability < best; ++capability)
            if (std::strcmp(wanted, names[capability]) == 0) return capability;
    return best;
}

// Null if this processor cannot run the variant.
const Variant* find(int capability) {
    static const int best = supported();
    if (capability < 0 || capability > best) return nullptr;
#ifdef CDN_X86
    if (capability == CDN_AVX512) return &avx512::variant;
    if (capability == CDN_AVX2) return &avx2::variant;
#endif
    return &scalar::variant;
}

}  // namespace

int cdn_interface() { return CDN_INTERFACE; }

int cdn_capability() {
    static const int capability = choose();
    return capability;
}

int cdn_add_noise(const void* x, const void* sigma, void* y, int type, std::int64_t batch, std::int64_t size,
                  std::int64_t channels, std::uint64_t seed, std::uint64_t offset, int threads,
                  int capability) {
    const Variant* variant = find(capability);
    if (!variant || type < CDN_FLOAT32 || type > CDN_FLOAT16) return 1;
    if (batch < 0 || size < 0 || channels < 0) return 1;
    const NoiseJob job{x, sigma, y, type, batch, size, channels, {seed, offset}};
    const std::int64_t units = job.units();
    if (threads <= 1 || batch * size < kSerial) {
        variant->add_noise(job, 0, units);
        return 0;
    }
    // Always the full team: OpenMP ends threads that a smaller one leaves idle, and torch wants them back.
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part)
        variant->add_noise(job, units * part / threads, units * (part + 1) / threads);
    return 0;
}

int cdn_sample_noise(const void* x, void* sigma, void* y, int type, std::int64_t batch, std::int64_t size,
                     std::int64_t channels, int law, double low, double high, double clean_share,
                     std::uint64_t seed, std::uint64_t offset, int threads, int capability) {
    const int level_type = type == CDN_FLOAT64 ? CDN_FLOAT64 : CDN_FLOAT32;
    return cdn_sample_sigma(sigma, level_type, batch, law, low, high, clean_share, seed, offset) ||
           cdn_add_noise(x, sigma, y, type, batch, size, channels, seed, offset, threads, capability);
}

int cdn_random_words(std::uint32_t* words, std::int64_t batch, std::int64_t blocks, int stream,
                     std::uint64_t seed, std::uint64_t offset, int capability) {
    const Variant* variant = find(capability);
    if (!variant || (stream != kNormalStream && stream != kLevelStream) || batch < 0 || blocks < 0) return 1;
    variant->random_words(words, batch, blocks, {seed, offset}, static_cast<Stream>(stream));
    return 0;
}
