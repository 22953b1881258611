// Reductions over the pixels or over all values of a sample, and their adjoints: what the head does to feature images.
#pragma once

#include "../gelu.h"
#include "rows.h"
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
    const Rows<channels_last> rows{job.channels, job.pixels, sizeof(typename Storage::Element)};

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
        Sums<Storage, 1, channels_last> sums(rows);
        sums.add([&](auto at) { at.add(0, at.load(a), at.load(b)); });
        double sum = 0;
        for (std::int64_t c = 0; c < job.channels; ++c) sum += sums.row(0)[c];
        values()[sample] = static_cast<Real>(sum / static_cast<double>(job.pixels));
    }

    // out = a values[sample] / pixels
    void scale(std::int64_t sample) const {
        const Element* a = first(sample);
        Element* out = image(sample);
        const Real factor = values()[sample] / static_cast<Real>(job.pixels);
        rows.template each<Storage>([&](auto at) { at.store(out, at.load(a) * factor); });
    }

    // values[sample, channel] = mean over pixels of a
    void mean(std::int64_t sample) const {
        const Element* a = first(sample);
        Sums<Storage, 1, channels_last> sums(rows);
        sums.add([&](auto at) { at.add(0, at.load(a)); });
        Real* out = values() + sample * job.channels;
        for (std::int64_t c = 0; c < job.channels; ++c)
            out[c] = static_cast<Real>(sums.row(0)[c] / static_cast<double>(job.pixels));
    }

    // out = values[sample, channel] / pixels
    void spread(std::int64_t sample) const {
        const Real* in = values() + sample * job.channels;
        Element* out = image(sample);
        Line<Real> row(rows.width);
        for (std::int64_t i = 0; i < rows.width; ++i) row[i] = in[i % job.channels] / static_cast<Real>(job.pixels);
        rows.template each<Storage>([&](auto at) { at.store(out, at.of(row)); });
    }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
