// The passes between convolutions, written once and compiled for each processor into the namespace CDN_VARIANT.
#pragma once

#include "norm.h"
#include "pool.h"

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
        for (std::int64_t i = first; i < last; ++i) out[i] = Storage::store(gelu<Storage::brief>(at(u, i)).value);
    } else if (job.sweep == CDN_BACKWARD && !other) {
        CDN_INDEPENDENT
        for (std::int64_t i = first; i < last; ++i)
            out[i] = Storage::store(gelu<Storage::brief>(at(u, i)).first * at(grad, i));
    } else if (job.sweep == CDN_BACKWARD) {
        CDN_INDEPENDENT
        for (std::int64_t i = first; i < last; ++i)
            out[i] = Storage::store(gelu<Storage::brief>(at(u, i)).first * at(grad, i) + at(other, i));
    } else {
        CDN_INDEPENDENT
        for (std::int64_t i = first; i < last; ++i) {
            const Gelu<Real> phi = gelu<Storage::brief>(at(u, i));
            tangent_out[i] = Storage::store(phi.first * at(other, i));
            out[i] = Storage::store(phi.second * (at(grad, i) * at(other, i)));
        }
    }
}

// Call kernel.run(sample) for a range of samples.
template <typename Kernel, typename Job>
void samples(const Job& job, std::int64_t first, std::int64_t last) {
    const Kernel kernel{job};
    for (std::int64_t sample = first; sample < last; ++sample) kernel.run(sample);
}

// Choose the storage type and the layout of a kernel.
template <template <typename, bool> class Kernel, typename Job>
void any(const Job& job, std::int64_t first, std::int64_t last) {
    with_storage(job.type, [&](auto storage) {
        using Storage = decltype(storage);
        job.channels_last ? samples<Kernel<Storage, true>>(job, first, last)
                          : samples<Kernel<Storage, false>>(job, first, last);
    });
}

void gelu_any(const GeluJob& job, std::int64_t first, std::int64_t last) {
    with_storage(job.type, [&](auto storage) { gelu_pass<decltype(storage)>(job, first, last); });
}

}  // namespace

extern const Passes passes{gelu_any, any<Norm, NormJob>, any<Pool, PoolJob>};

}  // namespace cdn::CDN_VARIANT
