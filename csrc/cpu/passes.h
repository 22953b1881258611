// The passes between convolutions, written once and compiled for each processor into the namespace CDN_VARIANT.
#pragma once

#include "channel_norm.h"
#include "functions.h"
#include "layer_norm.h"
#include "norm.h"
#include "pool.h"
#include "softmax.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Storage, typename Function>
void activation_pass(const ActivationJob& job, std::int64_t first, std::int64_t last) {
    using Element = typename Storage::Element;
    const auto* u = static_cast<const Element*>(job.u) + first;
    const auto* grad = static_cast<const Element*>(job.grad) + first;
    const auto* other = static_cast<const Element*>(job.other) + first;
    auto* out = static_cast<Element*>(job.out) + first;
    auto* tangent_out = static_cast<Element*>(job.tangent_out) + first;
    const auto each = [&](auto f, auto... images) {
        Rows<false>{1, last - first, sizeof(Element)}.template each<Storage>(f, images...);
    };
    const auto phi = [&](auto at) { return Function::template of<Storage::brief>(at.load(u)); };
    if (job.sweep == CDN_FORWARD) {
        each([&](auto at) { at.store(out, phi(at).value); }, u, out);
    } else if (job.sweep == CDN_BACKWARD && !job.other) {
        each([&](auto at) { at.store(out, phi(at).first * at.load(grad)); }, u, grad, out);
    } else if (job.sweep == CDN_BACKWARD) {
        each([&](auto at) { at.store(out, phi(at).first * at.load(grad) + at.load(other)); }, u, grad, other, out);
    } else {
        each(
            [&](auto at) {
                const auto [value, first, second] = phi(at);
                at.store(tangent_out, first * at.load(other));
                at.store(out, second * (at.load(grad) * at.load(other)));
            },
            u, grad, other, out, tangent_out);
    }
}

// Call kernel.run(sample) for a range of samples.
template <typename Kernel>
void samples(const PoolJob& job, std::int64_t first, std::int64_t last) {
    const Kernel kernel{job};
    for (std::int64_t sample = first; sample < last; ++sample) kernel.run(sample);
}

// Call kernel.run(sample, share) for the samples of a range of shares, which sum the gradients of parameters.
template <typename Kernel>
void shares(const NormJob& job, std::int64_t first, std::int64_t last) {
    using Real = typename Kernel::Real;
    const Kernel kernel{job};
    for (std::int64_t share = first; share < last; ++share) {
        for (void* gradient : {job.gain_grad, job.bias_grad})
            if (Real* sums = job.sums_of<Real>(gradient, share)) std::fill_n(sums, job.channels, Real(0));
        for (std::int64_t sample = job.first_sample(share); sample < job.first_sample(share + 1); ++sample)
            kernel.run(sample, share);
    }
}

// Choose the storage type and the layout of a kernel.
void pool(const PoolJob& job, std::int64_t first, std::int64_t last) {
    with_storage(job.type, [&](auto storage) {
        using Storage = decltype(storage);
        job.channels_last ? samples<Pool<Storage, true>>(job, first, last)
                          : samples<Pool<Storage, false>>(job, first, last);
    });
}

template <typename Function>
void norm(const NormJob& job, std::int64_t first, std::int64_t last) {
    with_storage(job.type, [&](auto storage) {
        using Storage = decltype(storage);
        if (Function::identity && job.groups == 1 && job.pixels == 1) shares<LayerNorm<Storage>>(job, first, last);
        else if (job.channels_last) shares<Norm<Storage, true, Function>>(job, first, last);
        else shares<Norm<Storage, false, Function>>(job, first, last);
    });
}

// Call f with the kernel of a batch normalization.
template <typename F>
void with_channel_norm(const NormJob& job, F f) {
    with_storage(job.type, [&](auto storage) {
        using Storage = decltype(storage);
        job.channels_last ? f(ChannelNorm<Storage, true>{job}) : f(ChannelNorm<Storage, false>{job});
    });
}

void sum_channels(const NormJob& job, double* sums, std::int64_t first, std::int64_t last) {
    with_channel_norm(job, [&](const auto& kernel) {
        for (std::int64_t segment = first; segment < last; ++segment) kernel.sum(sums, segment);
    });
}

void channel_norm(const NormJob& job, const double* sums, std::int64_t first, std::int64_t last) {
    with_channel_norm(job, [&](const auto& kernel) { kernel.write(sums, first, last); });
}

void softmax_tangent(const SoftmaxJob& job, std::int64_t first, std::int64_t last) {
    with_storage(job.type, [&](auto storage) {
        const SoftmaxTangent<decltype(storage)> kernel{job};
        for (std::int64_t row = first; row < last; ++row) kernel.run(row);
    });
}

template <typename Function>
void activation(const ActivationJob& job, std::int64_t first, std::int64_t last) {
    with_storage(job.type, [&](auto storage) { activation_pass<decltype(storage), Function>(job, first, last); });
}

}  // namespace

extern const Passes passes{activation<ExactGelu>, activation<Silu>, activation<Elu>, norm<ExactGelu>,
                           norm<Identity>,        sum_channels,     channel_norm,    pool,
                           softmax_tangent};

}  // namespace cdn::CDN_VARIANT
