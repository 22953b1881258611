// The C interface of the passes between convolutions.
#include <vector>

#include "dispatch.h"

using namespace cdn;

namespace {

bool known(const Variant* variant, int sweep, int type) {
    return variant && sweep >= CDN_FORWARD && sweep <= CDN_TANGENT && type >= CDN_FLOAT32 && type <= CDN_FLOAT16;
}

int run(void (*Passes::*pass)(const ActivationJob&, std::int64_t, std::int64_t), const ActivationJob& job, int threads,
        int capability) {
    const Variant* variant = find(capability);
    if (!known(variant, job.sweep, job.type) || job.size < 0) return 1;
    // Whole cache lines to each thread, and whole packs: rounding by an instruction makes 0 of subnormal numbers.
    constexpr std::int64_t kBlock = 256;
    split((job.size + kBlock - 1) / kBlock, job.size, threads, [&](std::int64_t first, std::int64_t last) {
        (variant->passes->*pass)(job, first * kBlock, last * kBlock < job.size ? last * kBlock : job.size);
    });
    return 0;
}

// Batch normalization.
int run_channels(const Passes& passes, const NormJob& job, int threads) {
    if (job.batch < 1 || job.shares != 1 || job.channels < 1 || !(job.eps > 0)) return 1;
    const std::int64_t segments = job.segments(), elements = job.batch * job.channels * job.pixels;
    std::vector<double> sums(segments * NormJob::kSums * job.channels);
    split(segments, elements, threads,
          [&](std::int64_t first, std::int64_t last) { passes.sum_channels(job, sums.data(), first, last); });
    split(segments, elements, threads, [&](std::int64_t first, std::int64_t last) {
        if (first < last) passes.channel_norm(job, sums.data(), first, last);
    });
    return 0;
}

int run(void (*Passes::*pass)(const NormJob&, std::int64_t, std::int64_t), const NormJob& job, int threads,
        int capability) {
    const Variant* variant = find(capability);
    if (!known(variant, job.sweep, job.type) || job.batch < 0 || job.pixels < 1) return 1;
    if (job.shares < (job.batch > 0) || job.shares > job.batch) return 1;
    if (job.groups == 0 && pass == &Passes::group_norm) return run_channels(*variant->passes, job, threads);
    if (job.groups < 1 || job.channels < job.groups || job.channels % job.groups != 0 || !(job.eps > 0)) return 1;
    split(job.shares, job.batch * job.channels * job.pixels, threads,
          [&](std::int64_t first, std::int64_t last) { (variant->passes->*pass)(job, first, last); });
    return 0;
}

}  // namespace

int cdn_gelu(int sweep, const void* u, const void* grad, const void* other, void* out, void* tangent_out, int type,
             std::int64_t size, int threads, int capability) {
    return run(&Passes::gelu, {sweep, u, grad, other, out, tangent_out, type, size}, threads, capability);
}

int cdn_silu(int sweep, const void* u, const void* grad, const void* other, void* out, void* tangent_out, int type,
             std::int64_t size, int threads, int capability) {
    return run(&Passes::silu, {sweep, u, grad, other, out, tangent_out, type, size}, threads, capability);
}

int cdn_elu(int sweep, const void* u, const void* grad, const void* other, void* out, void* tangent_out, int type,
            std::int64_t size, int threads, int capability) {
    return run(&Passes::elu, {sweep, u, grad, other, out, tangent_out, type, size}, threads, capability);
}

int cdn_gelu_norm(int sweep, const void* x, const void* residual, const void* gain, const void* grad,
                  const void* source, const void* tangent, void* statistics, void* sum, void* out, void* tangent_out,
                  void* gain_grad, int type, std::int64_t sourced, std::int64_t batch, std::int64_t channels,
                  std::int64_t pixels, std::int64_t groups, double eps, int scale_preserving, int channels_last,
                  int threads, int capability) {
    if (sourced < 0 || sourced > batch) return 1;
    const NormJob job{sweep,
                      x,
                      residual,
                      gain,
                      nullptr,
                      grad,
                      source,
                      tangent,
                      statistics,
                      sum,
                      out,
                      tangent_out,
                      gain_grad,
                      nullptr,
                      type,
                      source ? sourced : 0,
                      batch,
                      batch,
                      channels,
                      pixels,
                      groups,
                      eps,
                      scale_preserving != 0,
                      channels_last != 0};
    return run(&Passes::gelu_norm, job, threads, capability);
}

int cdn_group_norm(int sweep, const void* x, const void* gain, const void* bias, const void* grad, const void* tangent,
                   void* statistics, void* out, void* tangent_out, void* gain_grad, void* bias_grad, int type,
                   std::int64_t batch, std::int64_t shares, std::int64_t channels, std::int64_t pixels,
                   std::int64_t groups, double eps, int channels_last, int threads, int capability) {
    const NormJob job{sweep,      x,       nullptr,  gain,        bias,      grad,      nullptr, tangent,
                      statistics, nullptr, out,      tangent_out, gain_grad, bias_grad, type,    0,
                      batch,      shares,  channels, pixels,      groups,    eps,       false,   channels_last != 0};
    return run(&Passes::group_norm, job, threads, capability);
}

int cdn_softmax_tangent(const void* p, const void* grad, const void* tangent, void* out, void* tangent_out, int type,
                        std::int64_t rows, std::int64_t length, int threads, int capability) {
    const Variant* variant = find(capability);
    if (!known(variant, CDN_TANGENT, type) || rows < 0 || length < 1) return 1;
    const SoftmaxJob job{p, grad, tangent, out, tangent_out, type, rows, length};
    split(rows, rows * length, threads,
          [&](std::int64_t first, std::int64_t last) { variant->passes->softmax_tangent(job, first, last); });
    return 0;
}

int cdn_pool(int kind, const void* a, const void* b, void* values, void* out, int type, std::int64_t batch,
             std::int64_t channels, std::int64_t pixels, int channels_last, int threads, int capability) {
    const Variant* variant = find(capability);
    if (!variant || kind < CDN_DOT || kind > CDN_SPREAD || type < CDN_FLOAT32 || type > CDN_FLOAT16) return 1;
    if (batch < 0 || channels < 0 || pixels < 1) return 1;
    const PoolJob job{kind, a, b, values, out, type, batch, channels, pixels, channels_last != 0};
    split(batch, batch * channels * pixels, threads,
          [&](std::int64_t first, std::int64_t last) { variant->passes->pool(job, first, last); });
    return 0;
}
