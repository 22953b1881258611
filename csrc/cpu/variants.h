// What each compiled variant of the CPU kernels offers to the dispatcher.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../api.h"
#include "../philox.h"

namespace cdn {

// An add-noise call, cut into units that can run in any order on any thread.
struct NoiseJob {
    const void* x;
    const void* sigma;
    void* y;
    int type;
    std::int64_t batch, size, channels;
    Key key;
    Places places;

    static constexpr std::int64_t kUnit = 1024;  // elements of an image, in C order, that make a unit

    std::int64_t units_per_image() const { return (size + kUnit - 1) / kUnit; }
    std::int64_t units() const { return batch * units_per_image(); }
};

// The denoising residual sigma s + eps in units like those of NoiseJob; see cdn_denoising.
struct ResidualJob {
    NoiseJob noise;        // x is the score, y the gradient or null
    const void* factors;   // null, or one per image
    double* partial_sums;  // one per unit, or null
};

// An elementwise pass of GELU, SiLU or ELU; see cdn_gelu.
struct ActivationJob {
    int sweep;
    const void *u, *grad, *other;
    void *out, *tangent_out;
    int type;
    std::int64_t size;
};

// A pass of residual + GELU + normalization, see cdn_gelu_norm, or of normalization + bias, see cdn_group_norm, in
// shares of the batch that can run in any order on any thread.
struct NormJob {
    int sweep;
    const void *x, *residual, *gain, *bias, *grad, *source, *tangent;
    void *statistics, *sum, *out, *tangent_out, *gain_grad, *bias_grad;
    int type;
    std::int64_t sourced;  // how many samples, from the first on, have a source
    std::int64_t batch, shares, channels, pixels, groups;
    double eps;
    bool scale_preserving, channels_last;

    std::int64_t first_sample(std::int64_t share) const { return batch * share / shares; }
    // Of batch normalization, which has no groups: in how many segments the batch is shared out, see channel_norm.h,
    // and how many sums there are of a channel of one, at most.
    std::int64_t segments() const {
        constexpr std::int64_t kElements = 1 << 16, kMost = 64;
        const std::int64_t units = channels_last ? batch * pixels : batch;
        return std::clamp<std::int64_t>(batch * channels * pixels / kElements, 1, std::min(kMost, units));
    }
    static constexpr int kSums = 5;
    // The sums of a share, in gain_grad or bias_grad; null if nobody asks for them.
    template <typename Real>
    Real* sums_of(void* gradient, std::int64_t share) const {
        return gradient ? static_cast<Real*>(gradient) + share * channels : nullptr;
    }
};

// A reduction over samples [channels, pixels] or its adjoint; see cdn_pool.
struct PoolJob {
    int kind;
    const void *a, *b;
    void *values, *out;
    int type;
    std::int64_t batch, channels, pixels;
    bool channels_last;
};

// The second order of a softmax over rows; see cdn_softmax_tangent.
struct SoftmaxJob {
    const void *p, *grad, *tangent;
    void *out, *tangent_out;
    int type;
    std::int64_t rows, length;
};

struct NoiseKernels {
    void (*add_noise)(const NoiseJob&, std::int64_t first_unit, std::int64_t last_unit);
    void (*residual)(const ResidualJob&, std::int64_t first_unit, std::int64_t last_unit);
    void (*random_words)(std::uint32_t* words, std::int64_t batch, std::int64_t blocks, Key, Stream);
};

struct Passes {
    void (*gelu)(const ActivationJob&, std::int64_t first_element, std::int64_t last_element);
    void (*silu)(const ActivationJob&, std::int64_t first_element, std::int64_t last_element);
    void (*elu)(const ActivationJob&, std::int64_t first_element, std::int64_t last_element);
    void (*gelu_norm)(const NormJob&, std::int64_t first_share, std::int64_t last_share);
    void (*group_norm)(const NormJob&, std::int64_t first_share, std::int64_t last_share);
    void (*sum_channels)(const NormJob&, double* sums, std::int64_t first_segment, std::int64_t last_segment);
    void (*channel_norm)(const NormJob&, const double* sums, std::int64_t first_segment, std::int64_t last_segment);
    void (*pool)(const PoolJob&, std::int64_t first_sample, std::int64_t last_sample);
    void (*softmax_tangent)(const SoftmaxJob&, std::int64_t first_row, std::int64_t last_row);
};

namespace scalar {
extern const NoiseKernels noise;
extern const Passes passes;
}  // namespace scalar
namespace avx2 {
extern const NoiseKernels noise;
extern const Passes passes;
}  // namespace avx2
namespace avx512 {
extern const NoiseKernels noise;
extern const Passes passes;
}  // namespace avx512
namespace avx512bf16 { extern const Passes passes; }

}  // namespace cdn
