// The C interface of the library: plain pointers and integers, no Python and no torch.
//
// Shapes are [batch, size], one image a row. Functions that can fail return 0 on success and 1 if an argument
// is out of range (an unknown type, law or capability, or one that this processor lacks).
#pragma once

#include <cstdint>

// Raised with every change of the functions below, so that Python refuses a library built from older sources.
#define CDN_INTERFACE 2

#define CDN_API extern "C" __attribute__((visibility("default")))

enum cdn_type { CDN_FLOAT32, CDN_FLOAT64, CDN_BFLOAT16, CDN_FLOAT16 };
enum cdn_law { CDN_LOG_UNIFORM, CDN_UNIFORM, CDN_FIXED };
enum cdn_capability { CDN_SCALAR, CDN_AVX2, CDN_AVX512 };

// The value of CDN_INTERFACE that the library was built with.
CDN_API int cdn_interface();

// The best capability of this processor, or the lower one that the environment's CDN_CPU_CAPABILITY names.
CDN_API int cdn_capability();

// y = x + sigma eps. x is null for zero, sigma null for one. sigma is double for CDN_FLOAT64 and float
// otherwise; half precision is computed in float and rounded once. channels = 0: C order; channels = C: each
// image is stored [size / C, C] (channels last), while eps is still numbered in the order [C, size / C].
CDN_API int cdn_add_noise(const void* x, const void* sigma, void* y, int type, std::int64_t batch,
                          std::int64_t size, std::int64_t channels, std::uint64_t seed, std::uint64_t offset,
                          int threads, int capability);

// sigma[i], float or double, drawn from a law on [low, high], or 0 with probability clean_share.
CDN_API int cdn_sample_sigma(void* sigma, int type, std::int64_t batch, int law, double low, double high,
                             double clean_share, std::uint64_t seed, std::uint64_t offset);

// Both in one call: sigma[batch] is drawn and written, then y = x + sigma eps. x must not be null.
CDN_API int cdn_sample_noise(const void* x, void* sigma, void* y, int type, std::int64_t batch, std::int64_t size,
                             std::int64_t channels, int law, double low, double high, double clean_share,
                             std::uint64_t seed, std::uint64_t offset, int threads, int capability);

// words[batch, blocks, 4]: the integers behind the noise, for tests.
CDN_API int cdn_random_words(std::uint32_t* words, std::int64_t batch, std::int64_t blocks, int stream,
                             std::uint64_t seed, std::uint64_t offset, int capability);
