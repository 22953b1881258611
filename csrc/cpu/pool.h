// Reductions over the pixels or over all values of a sample, and their adjoints: what the head does to feature images.
#pragma once

#include "../gelu.h"
#include "runs.h"
#include "storage.h"
#include "variants.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Storage, bool channels_last>
struct Pool {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;

    const PoolJob& job;
    const std::int64_t size = job.channels * job.pixels;
    const Runs<channels_last> walk{job.channels, job.pixels};

    const Element* first(std::int64_t sample) const { return static_cast<const Element*>(job.a) + sample * size; }
    const Element* second(std::int64_t sample) const { return static_cast<const Element*>(job.b) + sample * size; }
    Element* image(std::int64_t sample) const { return static_cast<Element*>(job.out) + sample * size; }
    Real* values() const { return static_cast<Real*>(job.values); }

    void run(std::int64_t sample) const {
        switch (job.kind) {
            case CDN_DOT: return dot(sample);
            case CDN_SCALE: return scale(sample);
            case CDN_MEAN: return mean(sample);
            case CDN_SPREAD: return spread(sample);
        }
    }

    // values[sample] = sum a b / pixels
    void dot(std::int64_t sample) const {
        const Element *a = first(sample), *b = second(sample);
        Sums<Real, 1, channels_last> sums(walk);
        sums.add([&](std::int64_t i, std::int64_t, auto sum_of) {
            sum_of(0) = multiply_add(Storage::load(a[i]), Storage::load(b[i]), sum_of(0));
        });
        double sum = 0;
        for (std::int64_t c = 0; c < job.channels; ++c) sum += sums.row(0)[c];
        values()[sample] = static_cast<Real>(sum / static_cast<double>(job.pixels));
    }

    // out = a values[sample] / pixels
    void scale(std::int64_t sample) const {
        const Element* a = first(sample);
        Element* out = image(sample);
        const Real factor = values()[sample] / static_cast<Real>(job.pixels);
        walk.each([&](std::int64_t i, std::int64_t) { out[i] = Storage::store(Storage::load(a[i]) * factor); });
    }

    // values[sample, channel] = mean over pixels of a
    void mean(std::int64_t sample) const {
        const Element* a = first(sample);
        Sums<Real, 1, channels_last> sums(walk);
        sums.add([&](std::int64_t i, std::int64_t, auto sum_of) { sum_of(0) += Storage::load(a[i]); });
        Real* out = values() + sample * job.channels;
        for (std::int64_t c = 0; c < job.channels; ++c)
            out[c] = static_cast<Real>(sums.row(0)[c] / static_cast<double>(job.pixels));
    }

    // out = values[sample, channel] / pixels
    void spread(std::int64_t sample) const {
        const Real* in = values() + sample * job.channels;
        Element* out = image(sample);
        std::vector<Real> row(walk.width);
        for (std::int64_t i = 0; i < walk.width; ++i)
            row[i] = in[i % job.channels] / static_cast<Real>(job.pixels);
        walk.each([&](std::int64_t i, std::int64_t c) { out[i] = Storage::store(row[c]); });
    }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
