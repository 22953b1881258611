// The sweeps of a normalization of rows, as layers of transformers have: one group, one pixel, a gain and a bias.
//
//     c = x - mean x,  V = mean c^2,  r = (V + eps)^-1/2,  z = gain r c + bias
//
// The formulas are those of norm.h with the identity as the function. A row is some hundred elements long and there are
// thousands, so what is done once a row is kept short: no coefficient is spread over channels, and no memory is taken.
#pragma once

#include <algorithm>

#include "rows.h"
#include "variants.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Storage>
struct LayerNorm {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;

    const NormJob& job;
    const Rows<false> row{1, job.channels, sizeof(Element)};  // as one channel, so that its elements are summed
    const Real* gain = static_cast<const Real*>(job.gain);
    const Real* bias = static_cast<const Real*>(job.bias);
    const double count = static_cast<double>(job.channels);
    // Of the row that is being worked on.
    mutable Line<Real> centred = Line<Real>(job.channels);
    mutable Sums<Storage, 1, false> total{row};
    mutable Sums<Storage, 2, false> projections{row};
    mutable Sums<Storage, 5, false> products{row};

    void run(std::int64_t sample, std::int64_t share) const {
        if (job.sweep == CDN_FORWARD) forward(sample);
        else if (job.sweep == CDN_BACKWARD) backward(sample, share);
        else tangent(sample, share);
    }

    // The statistics of a row, as norm.h keeps them of a sample with one group.
    struct Statistics {
        Real pivot, mean, r, k, s;
    };
    Statistics& statistics(std::int64_t sample) const { return static_cast<Statistics*>(job.statistics)[sample]; }

    template <typename T>
    T* at(T* start, std::int64_t sample) const {
        return start + sample * job.channels;
    }
    const Element* input(const void* image, std::int64_t sample) const {
        return at(static_cast<const Element*>(image), sample);
    }
    Element* output(void* image, std::int64_t sample) const { return at(static_cast<Element*>(image), sample); }

    // Write the means of what f adds for every element of the row.
    template <int K, typename F>
    void means(Sums<Storage, K, false>& sums, Real* out, F f) const {
        sums.clear();
        sums.add(f);
        for (int k = 0; k < K; ++k) out[k] = static_cast<Real>(sums.row(k)[0] / count);
    }
    template <typename F>
    void each(F f) const {
        row.template each<Storage>(f);
    }

    void forward(std::int64_t sample) const {
        const Element* x = input(job.x, sample);
        Element* z = output(job.out, sample);
        Real* c = centred.data();
        // Differences from one value keep the digits of a small variance beside a large mean.
        const Real pivot = Storage::load(x[0]);
        Real mean, variance;
        means(total, &mean, [&](auto at) {
            const auto from_pivot = at.load(x) - pivot;
            at.keep(c, from_pivot);
            at.add(0, from_pivot);
        });
        means(total, &variance, [&](auto at) {
            const auto difference = at.kept(c) - mean;
            at.keep(c, difference);
            at.add(0, difference, difference);
        });
        const Real inverse = Real(1) / (variance + static_cast<Real>(job.eps)), r = square_root(inverse);
        statistics(sample) = {pivot, mean, r, variance * inverse, Real(1)};
        if (bias) each([&](auto at) { at.store(z, multiply_add(at.kept(gain) * r, at.kept(c), at.kept(bias))); });
        else each([&](auto at) { at.store(z, at.kept(gain) * r * at.kept(c)); });
    }

    // g_x = r (q - mean q - xh mean(q xh)) with q = gain g and xh = r c.
    void backward(std::int64_t sample, std::int64_t share) const {
        const Element *x = input(job.x, sample), *grad = input(job.grad, sample);
        Element* out = output(job.out, sample);
        Real* c = centred.data();
        const Statistics st = statistics(sample);
        const Real r = st.r;
        Real mean_q[2];  // of q and q c
        means(projections, mean_q, [&](auto at) {
            const auto difference = at.load(x) - st.pivot - st.mean, q = at.kept(gain) * at.load(grad);
            at.keep(c, difference);
            at.add(0, q);
            at.add(1, q, difference);
        });
        const Real of_centred = -r * r * r * mean_q[1];
        each([&](auto at) {
            const auto q = at.kept(gain) * at.load(grad);
            at.store(out, multiply_add(at.kept(c), of_centred, (q - mean_q[0]) * r));
        });
        if (Real* sum = job.sums_of<Real>(job.gain_grad, share))
            each([&](auto at) { at.keep(sum, multiply_add(at.load(grad), at.kept(c) * r, at.kept(sum))); });
        if (Real* sum = job.sums_of<Real>(job.bias_grad, share))
            each([&](auto at) { at.keep(sum, at.kept(sum) + at.load(grad)); });
    }

    // The names are those of norm.h and docs/derivations.md, where s = 1 and bdot is the tangent.
    void tangent(std::int64_t sample, std::int64_t share) const {
        const Element *x = input(job.x, sample), *grad = input(job.grad, sample), *dot = input(job.tangent, sample);
        Element *zdot = output(job.tangent_out, sample), *source = output(job.out, sample);
        Real* c = centred.data();
        const Statistics st = statistics(sample);
        const Real r = st.r;
        Real mean[5];  // of q, q c, bdot, bdot c, q bdot
        means(products, mean, [&](auto at) {
            const auto difference = at.load(x) - st.pivot - st.mean, bdot = at.load(dot);
            const auto q = at.kept(gain) * at.load(grad);
            at.keep(c, difference);
            at.add(0, q);
            at.add(1, q, difference);
            at.add(2, bdot);
            at.add(3, bdot, difference);
            at.add(4, q, bdot);
        });
        const Real be = r * mean[1], al = r * mean[3], R = mean[4] - mean[0] * mean[2];
        const Real J_centred = -r * r * al;
        const Real e_bdot = -r * r * be, e_q = -r * r * al, e_centred = -r * r * r * (R - 3 * al * be);
        Real* sum = job.sums_of<Real>(job.gain_grad, share);
        const auto write = [&](auto with_gain) {
            each([&](auto at) {
                const auto g = at.load(grad), bdot = at.load(dot) - mean[2], difference = at.kept(c);
                const auto J = multiply_add(difference, J_centred, bdot * r);
                const auto e = multiply_add(difference, e_centred, bdot * e_bdot);
                if constexpr (with_gain) at.keep(sum, multiply_add(g, J, at.kept(sum)));
                at.store(zdot, at.kept(gain) * J);
                at.store(source, multiply_add(at.kept(gain) * g - mean[0], e_q, e));
            });
        };
        sum ? write(std::true_type{}) : write(std::false_type{});
    }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
