// The sweeps of a normalization of one sample in which every channel is a group, channels last: batch normalization,
// which takes the pixels of all images for those of one.
//
//     c = x - mean x,  V = mean c^2,  r = (V + eps)^-1/2,  z = gain r c + bias
//
// The formulas are those of norm.h with the identity as the function. The sample is larger than caches and there is no
// other, so threads share its pixels: each segment is summed, the sums of all are added in their order, and then
// segments are written. How many there are follows from the shape alone.
#pragma once

#include <algorithm>
#include <vector>

#include "rows.h"
#include "variants.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Storage>
struct ChannelNorm {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    using Row = Line<Real>;  // one value per channel, repeated as Rows has them

    const NormJob& job;
    const std::int64_t channels = job.channels;
    const double count = static_cast<double>(job.pixels);
    const Real* gain = static_cast<const Real*>(job.gain);
    const Real* bias = static_cast<const Real*>(job.bias);
    // As norm.h keeps them of a sample.
    Real* const pivot = static_cast<Real*>(job.statistics);
    Real *const mean = pivot + channels, *const r = mean + channels, *const k = r + channels, *const s = k + channels;

    // Write sums[segment, NormJob::kSums, channels] of a segment.
    void sum(double* sums, std::int64_t segment) const {
        double* own = sums + segment * NormJob::kSums * channels;
        if (job.sweep == CDN_FORWARD) sum_squares(own, segment);
        else if (job.sweep == CDN_BACKWARD) sum_projections(own, segment);
        else sum_products(own, segment);
    }

    // Write the results of segments first .. last, and with the first one what there is one of.
    void write(const double* sums, std::int64_t first, std::int64_t last) const {
        if (job.sweep == CDN_FORWARD) write_forward(sums, first, last);
        else if (job.sweep == CDN_BACKWARD) write_backward(sums, first, last);
        else write_tangent(sums, first, last);
    }

private:
    std::int64_t begin(std::int64_t segment) const { return job.pixels * segment / job.segments(); }
    std::int64_t pixels(std::int64_t segment) const { return begin(segment + 1) - begin(segment); }
    Rows<true> rows_of(std::int64_t segment) const { return {channels, pixels(segment), sizeof(Element)}; }
    const Element* input(const void* image, std::int64_t segment) const {
        return static_cast<const Element*>(image) + begin(segment) * channels;
    }
    Element* output(void* image, std::int64_t segment) const {
        return static_cast<Element*>(image) + begin(segment) * channels;
    }

    // Give each place in a row the value(channel) of its channel.
    template <typename F>
    static Row spread(const Rows<true>& rows, F value) {
        Row row(rows.width);
        for (std::int64_t c = 0; c < rows.channels; ++c) row[c] = static_cast<Real>(value(c));
        for (std::int64_t first = rows.channels; first < rows.width; first += rows.channels)
            std::copy_n(row.begin(), rows.channels, row.begin() + first);
        return row;
    }
    static Row repeat(const Rows<true>& rows, const Real* values) {
        return spread(rows, [=](auto c) { return values[c]; });
    }

    // The mean over all pixels of what was summed, or the sum.
    double total(const double* sums, int which, std::int64_t c) const {
        double sum = 0;
        for (std::int64_t i = 0; i < job.segments(); ++i) sum += sums[(i * NormJob::kSums + which) * channels + c];
        return sum;
    }
    Real average(const double* sums, int which, std::int64_t c) const {
        return static_cast<Real>(total(sums, which, c) / count);
    }

    // Call f(rows, segment) for segments first .. last, with vectors of coefficients that value(c, i) gives of a
    // channel.
    template <int K, typename Values, typename F>
    void with_coefficients(std::int64_t first, std::int64_t last, Values values, F f) const {
        for (std::int64_t segment = first; segment < last; ++segment) {
            const Rows<true> rows = rows_of(segment);
            Row row[K];
            for (int i = 0; i < K; ++i) row[i] = spread(rows, [&](auto c) { return values[c * K + i]; });
            f(rows, segment, row);
        }
    }

    // Sums of x - pivot, and of the squares of its differences from their mean within the segment, which is in the
    // cache. The pivot, one value of each channel, keeps the digits of a small variance beside a large mean, and makes
    // that of a constant channel exactly 0.
    void sum_squares(double* own, std::int64_t segment) const {
        const Element* x = input(job.x, segment);
        const Rows<true> rows = rows_of(segment);
        const Row first = spread(rows, [&](auto c) { return Storage::load(static_cast<const Element*>(job.x)[c]); });
        Sums<Storage, 1, true> sum(rows), squares(rows);
        sum.add([&](auto at) { at.add(0, at.load(x) - at.of(first)); }, x);
        const double size = static_cast<double>(pixels(segment));
        const Row middle = spread(rows, [&](auto c) { return sum.row(0)[c] / size; });
        squares.add([&](auto at) {
            const auto difference = at.load(x) - at.of(first) - at.of(middle);
            at.add(0, difference, difference);
        });
        std::copy_n(sum.row(0), channels, own);
        std::copy_n(squares.row(0), channels, own + channels);
    }

    void write_forward(const double* sums, std::int64_t first, std::int64_t last) const {
        const auto* start = static_cast<const Element*>(job.x);
        std::vector<Real> values(4 * channels);  // pivot, mean, scale, bias
        for (std::int64_t c = 0; c < channels; ++c) {
            const double middle = total(sums, 0, c) / count;
            double squares = total(sums, 1, c);
            for (std::int64_t i = 0; i < job.segments(); ++i) {
                const double size = static_cast<double>(pixels(i));
                const double apart = sums[i * NormJob::kSums * channels + c] / size - middle;
                squares += size * apart * apart;
            }
            const Real variance = static_cast<Real>(squares / count), pivot_of = Storage::load(start[c]);
            const Real inverse = Real(1) / (variance + static_cast<Real>(job.eps)), root = square_root(inverse);
            if (first == 0) {
                pivot[c] = pivot_of, mean[c] = static_cast<Real>(middle);
                r[c] = root, k[c] = variance * inverse, s[0] = Real(1);
            }
            Real* of = values.data() + 4 * c;
            of[0] = pivot_of, of[1] = static_cast<Real>(middle), of[2] = gain[c] * root,
            of[3] = bias ? bias[c] : Real(0);
        }
        with_coefficients<4>(first, last, values.data(), [&](const auto& rows, auto segment, const Row* of) {
            const Element* x = input(job.x, segment);
            Element* z = output(job.out, segment);
            rows.template each<Storage>(
                [&](auto at) {
                    at.store(z, multiply_add(at.of(of[2]), at.load(x) - at.of(of[0]) - at.of(of[1]), at.of(of[3])));
                },
                x, z);
        });
    }

    // Sums of g and g c.
    void sum_projections(double* own, std::int64_t segment) const {
        const Element *x = input(job.x, segment), *grad = input(job.grad, segment);
        const Rows<true> rows = rows_of(segment);
        const Row first = repeat(rows, pivot), middle = repeat(rows, mean);
        Sums<Storage, 2, true> sums(rows);
        sums.add(
            [&](auto at) {
                const auto g = at.load(grad);
                at.add(0, g);
                at.add(1, g, at.load(x) - at.of(first) - at.of(middle));
            },
            x, grad);
        std::copy_n(sums.row(0), 2 * channels, own);
    }

    // g_x = gain r (g - mean g - xh mean(g xh)) with xh = r c.
    void write_backward(const double* sums, std::int64_t first, std::int64_t last) const {
        std::vector<Real> values(5 * channels);  // pivot, mean, and the coefficients of g, 1 and c
        for (std::int64_t c = 0; c < channels; ++c) {
            Real* of = values.data() + 5 * c;
            of[0] = pivot[c], of[1] = mean[c], of[2] = gain[c] * r[c];
            of[3] = -of[2] * average(sums, 0, c), of[4] = -of[2] * r[c] * r[c] * average(sums, 1, c);
        }
        if (first == 0) write_gradients(sums);
        with_coefficients<5>(first, last, values.data(), [&](const auto& rows, auto segment, const Row* of) {
            const Element *x = input(job.x, segment), *grad = input(job.grad, segment);
            Element* out = output(job.out, segment);
            rows.template each<Storage>(
                [&](auto at) {
                    const auto centred = at.load(x) - at.of(of[0]) - at.of(of[1]);
                    at.store(
                        out,
                        multiply_add(at.of(of[4]), centred, multiply_add(at.of(of[2]), at.load(grad), at.of(of[3]))));
                },
                x, grad, out);
        });
    }

    void write_gradients(const double* sums) const {
        if (Real* out = job.sums_of<Real>(job.gain_grad, 0))
            for (std::int64_t c = 0; c < channels; ++c) out[c] = static_cast<Real>(r[c] * total(sums, 1, c));
        if (Real* out = job.sums_of<Real>(job.bias_grad, 0))
            for (std::int64_t c = 0; c < channels; ++c) out[c] = static_cast<Real>(total(sums, 0, c));
    }

    // Sums of g, g c, bdot, bdot c and g bdot, where bdot is the tangent.
    void sum_products(double* own, std::int64_t segment) const {
        const Element *x = input(job.x, segment), *grad = input(job.grad, segment), *dot = input(job.tangent, segment);
        const Rows<true> rows = rows_of(segment);
        const Row first = repeat(rows, pivot), middle = repeat(rows, mean);
        Sums<Storage, NormJob::kSums, true> sums(rows);
        sums.add(
            [&](auto at) {
                const auto g = at.load(grad), bdot = at.load(dot);
                const auto centred = at.load(x) - at.of(first) - at.of(middle);
                at.add(0, g);
                at.add(1, g, centred);
                at.add(2, bdot);
                at.add(3, bdot, centred);
                at.add(4, g, bdot);
            },
            x, grad, dot);
        std::copy_n(sums.row(0), NormJob::kSums * channels, own);
    }

    // The names are those of norm.h and docs/derivations.md.
    void write_tangent(const double* sums, std::int64_t first, std::int64_t last) const {
        constexpr int kValues = 9;  // pivot, mean; of zdot, by bdot, 1 and c; of the source, by bdot, g, 1 and c
        std::vector<Real> values(kValues * channels);
        Real* gain_grad = first == 0 ? job.sums_of<Real>(job.gain_grad, 0) : nullptr;
        for (std::int64_t c = 0; c < channels; ++c) {
            const Real root = r[c], mq = gain[c] * average(sums, 0, c), mb = average(sums, 2, c);
            const Real be = gain[c] * root * average(sums, 1, c), al = root * average(sums, 3, c);
            const Real R = gain[c] * average(sums, 4, c) - mq * mb, J_centred = -root * root * al;
            const Real e_bdot = -root * root * be, e_q = J_centred;
            Real* of = values.data() + kValues * c;
            of[0] = pivot[c], of[1] = mean[c];
            of[2] = gain[c] * root, of[3] = -of[2] * mb, of[4] = gain[c] * J_centred;
            of[5] = e_bdot, of[6] = gain[c] * e_q, of[7] = -e_bdot * mb - e_q * mq;
            of[8] = -root * root * root * (R - 3 * al * be);
            if (gain_grad)
                gain_grad[c] = static_cast<Real>(root * (total(sums, 4, c) - mb * total(sums, 0, c))
                                                 + J_centred * total(sums, 1, c));
        }
        with_coefficients<kValues>(first, last, values.data(), [&](const auto& rows, auto segment, const Row* of) {
            const Element *x = input(job.x, segment), *grad = input(job.grad, segment);
            const Element* dot = input(job.tangent, segment);
            Element *zdot = output(job.tangent_out, segment), *source = output(job.out, segment);
            rows.template each<Storage>(
                [&](auto at) {
                    const auto g = at.load(grad), bdot = at.load(dot);
                    const auto centred = at.load(x) - at.of(of[0]) - at.of(of[1]);
                    at.store(zdot, multiply_add(at.of(of[2]), bdot, multiply_add(at.of(of[4]), centred, at.of(of[3]))));
                    const auto rest = multiply_add(at.of(of[8]), centred, at.of(of[7]));
                    at.store(source, multiply_add(at.of(of[5]), bdot, multiply_add(at.of(of[6]), g, rest)));
                },
                x, grad, dot, zdot, source);
        });
    }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
