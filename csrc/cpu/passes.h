// The passes between convolutions, written once and compiled for each processor into the namespace CDN_VARIANT.
#pragma once

#include "norm.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Storage>
void gelu_pass(const GeluJob& job, std::int64_t first, std::int64_t last) {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    const auto* u = static_cast<const Element*>(job.u);
    const auto* grad = static_cast<const Element*>(job.grad);
    const auto* other = static_cast<const Element*>(job.other);
    auto* out = static_cast<Element*>(job.out);
    auto* tangent_out = static_cast<Element*>(job.tangent_out);
    const auto at = [](const Element* p, std::int64_t i) { return Storage::load(p[i]); };
    if (job.sweep == CDN_FORWARD) {
        CDN_INDEPENDENT
        for (std::int64_t i = first; i < last; ++i) out[i] = Storage::store(gelu(at(u, i)).value);
    } else if (job.sweep == CDN_BACKWARD && !other) {
        CDN_INDEPENDENT
        for (std::int64_t i = first; i < last; ++i) out[i] = Storage::store(gelu(at(u, i)).first * at(grad, i));
    } else if (job.sweep == CDN_BACKWARD) {
        CDN_INDEPENDENT
        for (std::int64_t i = first; i < last; ++i)
            out[i] = Storage::store(gelu(at(u, i)).first * at(grad, i) + at(other, i));
    } else {
        CDN_INDEPENDENT
        for (std::int64_t i = first; i < last; ++i) {
            const Gelu<Real> phi = gelu(at(u, i));
            tangent_out[i] = Storage::store(phi.first * at(other, i));
            out[i] = Storage::store(phi.second * (at(grad, i) * at(other, i)));
        }
    }
}

template <typename Storage, bool channels_last>
void norm_pass(const NormJob& job, std::int64_t first, std::int64_t last) {
    const Norm<Storage, channels_last> norm{job};
    for (std::int64_t sample = first; sample < last; ++sample) {
        if (job.sweep == CDN_FORWARD) norm.forward(sample);
        else if (job.sweep == CDN_BACKWARD) norm.backward(sample);
        else norm.tangent(sample);
    }
}

void gelu_any(const GeluJob& job, std::int64_t first, std::int64_t last) {
    switch (job.type) {
        case CDN_FLOAT32: return gelu_pass<Float32>(job, first, last);
        case CDN_FLOAT64: return gelu_pass<Float64>(job, first, last);
        case CDN_BFLOAT16: return gelu_pass<Bfloat16>(job, first, last);
        case CDN_FLOAT16: return gelu_pass<Float16>(job, first, last);
    }
}

template <bool channels_last>
void norm_any(const NormJob& job, std::int64_t first, std::int64_t last) {
    switch (job.type) {
        case CDN_FLOAT32: return norm_pass<Float32, channels_last>(job, first, last);
        case CDN_FLOAT64: return norm_pass<Float64, channels_last>(job, first, last);
        case CDN_BFLOAT16: return norm_pass<Bfloat16, channels_last>(job, first, last);
        case CDN_FLOAT16: return norm_pass<Float16, channels_last>(job, first, last);
    }
}

void norm(const NormJob& job, std::int64_t first, std::int64_t last) {
    job.channels_last ? norm_any<true>(job, first, last) : norm_any<false>(job, first, last);
}

}  // namespace

extern const Passes passes{gelu_any, norm};

}  // namespace cdn::CDN_VARIANT
