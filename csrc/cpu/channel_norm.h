// The sweeps of batch normalization, in which every channel of all samples is a group.
//
//     c = x - mean x,  V = mean c^2,  r = (V + eps)^-1/2,  z = gain r c + bias
//
// The formulas are those of norm.h with the identity as the function. The samples are larger than caches, and none is
// done before all are read: segments of the batch are summed, by any thread, the sums of all are added in their order,
// and then segments are written. How many there are follows from the shape alone. A segment is some pixels of all that
// there are (channels last), or some samples.
#pragma once

#include <algorithm>
#include <vector>

#include "rows.h"
#include "variants.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Storage, bool channels_last>
struct ChannelNorm {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    using Row = Line<Real>;  // one value per channel, repeated as Rows has them
    using Pixels = Rows<channels_last>;

    const NormJob& job;
    const std::int64_t channels = job.channels;
    const std::int64_t units = channels_last ? job.batch * job.pixels : job.batch;  // pixels or samples
    const std::int64_t segments = job.segments();
    const std::int64_t unit_pixels = channels_last ? 1 : job.pixels;
    const double count = static_cast<double>(job.batch * job.pixels);
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
    std::int64_t begin(std::int64_t segment) const { return units * segment / segments; }
    double pixels(std::int64_t segment) const {
        return static_cast<double>((begin(segment + 1) - begin(segment)) * unit_pixels);
    }
    // Those of a segment, or of one of its samples.
    Pixels rows_of(std::int64_t segment) const {
        return {channels, channels_last ? begin(segment + 1) - begin(segment) : job.pixels, sizeof(Element)};
    }
    // Call f with the first element of each run of pixels of a segment that rows_of describes.
    template <typename F>
    void runs(std::int64_t segment, F f) const {
        const std::int64_t size = unit_pixels * channels, end = begin(segment + 1);
        for (std::int64_t i = begin(segment); i < end; i += channels_last ? units : 1) f(i * size);
    }
    const Element* input(const void* image, std::int64_t first) const {
        return static_cast<const Element*>(image) + first;
    }
    Element* output(void* image, std::int64_t first) const { return static_cast<Element*>(image) + first; }

    // Give each place in a row the value(channel) of its channel.
    template <typename F>
    static Row spread(const Pixels& rows, F value) {
        Row row(rows.width);
        for (std::int64_t c = 0; c < rows.channels; ++c) row[c] = static_cast<Real>(value(c));
        for (std::int64_t first = rows.channels; first < rows.width; first += rows.channels)
            std::copy_n(row.begin(), rows.channels, row.begin() + first);
        return row;
    }
    static Row repeat(const Pixels& rows, const Real* values) {
        return spread(rows, [=](auto c) { return values[c]; });
    }

    // The mean over all pixels of what was summed, or the sum.
    double total(const double* sums, int which, std::int64_t c) const {
        double sum = 0;
        for (std::int64_t i = 0; i < segments; ++i) sum += sums[(i * NormJob::kSums + which) * channels + c];
        return sum;
    }
    Real average(const double* sums, int which, std::int64_t c) const {
        return static_cast<Real>(total(sums, which, c) / count);
    }

    // Call f(rows, first element, coefficients) for every run of segments first .. last, with K rows of coefficients,
    // of which `values` has K for each channel.
    template <int K, typename F>
    void with_coefficients(std::int64_t first, std::int64_t last, const std::vector<Real>& values, F f) const {
        for (std::int64_t segment = first; segment < last; ++segment) {
            const Pixels rows = rows_of(segment);
            Row row[K];
            for (int i = 0; i < K; ++i) row[i] = spread(rows, [&](auto c) { return values[c * K + i]; });
            runs(segment, [&](auto start) { f(rows, start, row); });
        }
    }

    Real pivot_of(std::int64_t c) const {
        return Storage::load(static_cast<const Element*>(job.x)[c * (channels_last ? 1 : job.pixels)]);
    }

    // Sums of x - pivot, and of the squares of its differences from their mean within the segment, which is in the
    // cache. The pivot, one value of each channel, keeps the digits of a small variance beside a large mean, and makes
    // that of a constant channel exactly 0.
    void sum_squares(double* own, std::int64_t segment) const {
        const Pixels rows = rows_of(segment);
        const Row first = spread(rows, [&](auto c) { return pivot_of(c); });
        Sums<Storage, 1, channels_last> sum(rows), squares(rows);
        runs(segment, [&](auto start) {
            const Element* x = input(job.x, start);
            sum.add([&](auto at) { at.add(0, at.load(x) - at.of(first)); }, x);
        });
        const double size = pixels(segment);
        const Row middle = spread(rows, [&](auto c) { return sum.row(0)[c] / size; });
        runs(segment, [&](auto start) {
            const Element* x = input(job.x, start);
            squares.add([&](auto at) {
                const auto difference = at.load(x) - at.of(first) - at.of(middle);
                at.add(0, difference, difference);
            });
        });
        std::copy_n(sum.row(0), channels, own);
        std::copy_n(squares.row(0), channels, own + channels);
    }

    void write_forward(const double* sums, std::int64_t first, std::int64_t last) const {
        std::vector<double> sizes(segments);
        for (std::int64_t i = 0; i < segments; ++i) sizes[i] = pixels(i);
        std::vector<Real> values(4 * channels);  // pivot, mean, scale, bias
        for (std::int64_t c = 0; c < channels; ++c) {
            const double middle = total(sums, 0, c) / count;
            double squares = total(sums, 1, c);
            for (std::int64_t i = 0; i < segments; ++i) {
                const double apart = sums[i * NormJob::kSums * channels + c] / sizes[i] - middle;
                squares += sizes[i] * apart * apart;
            }
            const Real variance = static_cast<Real>(squares / count), from = pivot_of(c);
            const Real inverse = Real(1) / (variance + static_cast<Real>(job.eps)), root = square_root(inverse);
            if (first == 0) {
                pivot[c] = from, mean[c] = static_cast<Real>(middle);
                r[c] = root, k[c] = variance * inverse, s[0] = Real(1);
            }
            Real* of = values.data() + 4 * c;
            of[0] = from, of[1] = static_cast<Real>(middle), of[2] = gain[c] * root, of[3] = bias ? bias[c] : Real(0);
        }
        with_coefficients<4>(first, last, values, [&](const auto& rows, auto start, const Row* of) {
            const Element* x = input(job.x, start);
            Element* z = output(job.out, start);
            rows.template each<Storage>(
                [&](auto at) {
                    at.store(z, multiply_add(at.of(of[2]), at.load(x) - at.of(of[0]) - at.of(of[1]), at.of(of[3])));
                },
                x, z);
        });
    }

    // Sums of g and g c.
    void sum_projections(double* own, std::int64_t segment) const {
        const Pixels rows = rows_of(segment);
        const Row first = repeat(rows, pivot), middle = repeat(rows, mean);
        Sums<Storage, 2, channels_last> sums(rows);
        runs(segment, [&](auto start) {
            const Element *x = input(job.x, start), *grad = input(job.grad, start);
            sums.add(
                [&](auto at) {
                    const auto g = at.load(grad);
                    at.add(0, g);
                    at.add(1, g, at.load(x) - at.of(first) - at.of(middle));
                },
                x, grad);
        });
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
        with_coefficients<5>(first, last, values, [&](const auto& rows, auto start, const Row* of) {
            const Element *x = input(job.x, start), *grad = input(job.grad, start);
            Element* out = output(job.out, start);
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
        const Pixels rows = rows_of(segment);
        const Row first = repeat(rows, pivot), middle = repeat(rows, mean);
        Sums<Storage, NormJob::kSums, channels_last> sums(rows);
        runs(segment, [&](auto start) {
            const Element *x = input(job.x, start), *grad = input(job.grad, start), *dot = input(job.tangent, start);
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
        });
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
        with_coefficients<kValues>(first, last, values, [&](const auto& rows, auto start, const Row* of) {
            const Element *x = input(job.x, start), *grad = input(job.grad, start);
            const Element* dot = input(job.tangent, start);
            Element *zdot = output(job.tangent_out, start), *source = output(job.out, start);
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
