// The sweeps of residual + a function + group normalization + bias, one sample at a time.
//
//     v = x + residual,  b = phi(v),  c = b - mean b,  V = mean c^2,  z = gain s r c + bias
//
// with r = (V + eps)^-1/2, s = 1 (plain) or r = (V + eps T)^-1/2, s = sqrt T, T = mean of V over the groups of the
// sample (scale-preserving). Every sweep reads v and computes phi and its derivatives again: arithmetic is cheaper
// than the memory to keep them. Within the forward and the backward sweep, values of one sample are kept, for the
// cache holds them; in the tangent sweep they would drive out of it what is read. Scalars of groups are spread over
// channels, so that both layouts share one loop. phi is the exact GELU, without bias, or the identity, with one.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../floor.h"
#include "functions.h"
#include "rows.h"
#include "storage.h"
#include "variants.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Storage, bool channels_last, typename Function>
struct Norm {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    using Row = Line<Real>;  // one value per channel or group, or per element of a row

    const NormJob& job;
    const Rows<channels_last> rows{job.channels, job.pixels, sizeof(typename Storage::Element)};
    const std::int64_t size = rows.size;
    const std::int64_t group_channels = job.channels / job.groups;
    const double count = static_cast<double>(group_channels * job.pixels);
    const Real* gain = static_cast<const Real*>(job.gain);
    // Of the sample that is being worked on: forward, b - pivot; backward, c and then phi' unless that is 1.
    mutable Row kept =
        Row(job.sweep == CDN_TANGENT ? 0 : size * (job.sweep == CDN_FORWARD || Function::identity ? 1 : 2));

    // The statistics of a sample, as they lie in memory.
    struct Statistics {
        // Per group: mean b = pivot + mean, in two parts so that a large mean keeps its digits; k = V r^2.
        Real *pivot, *mean, *r, *k;
        Real* s;             // per sample; 0 if T is at its floor, as where all groups are constant, and so is z
    };
    Statistics statistics(std::int64_t sample) const {
        Real* start = static_cast<Real*>(job.statistics) + sample * (4 * job.groups + 1);
        return {start, start + job.groups, start + 2 * job.groups, start + 3 * job.groups, start + 4 * job.groups};
    }
    template <typename T>
    T* at(T* start, std::int64_t sample) const {
        return start ? start + sample * size : nullptr;
    }

    void run(std::int64_t sample, std::int64_t share) const {
        if (job.sweep == CDN_FORWARD) forward(sample);
        else if (job.sweep == CDN_BACKWARD) backward(sample, share);
        else tangent(sample, share);
    }

    // Give each place in a row the value(channel, group) of its channel.
    template <typename F>
    Row spread(F value) const {
        Row row(rows.width);
        for (std::int64_t g = 0, c = 0; g < job.groups; ++g)
            for (std::int64_t last = c + group_channels; c < last; ++c) row[c] = value(c, g);
        for (std::int64_t first = job.channels; first < rows.width; first += job.channels)
            std::copy_n(row.begin(), job.channels, row.begin() + first);
        return row;
    }
    // Sum the channels of each group and divide by the number of values.
    Row group_means(const double* sums) const {
        Row means(job.groups);
        for (std::int64_t g = 0; g < job.groups; ++g) {
            double sum = 0;
            for (std::int64_t c = g * group_channels; c < (g + 1) * group_channels; ++c) sum += sums[c];
            means[g] = static_cast<Real>(sum / count);
        }
        return means;
    }
    template <typename F>
    Real mean_over_groups(F value) const {
        Real sum = 0;
        for (std::int64_t g = 0; g < job.groups; ++g) sum += value(g);
        return sum / static_cast<Real>(job.groups);
    }

    void forward(std::int64_t sample) const {
        const Element* x = at(static_cast<const Element*>(job.x), sample);
        const Element* residual = at(static_cast<const Element*>(job.residual), sample);
        Element* sum = at(static_cast<Element*>(job.sum), sample);
        Element* z = at(static_cast<Element*>(job.out), sample);
        Real* const values = kept.data();
        const Statistics st = statistics(sample);
        // Summing differences from one value of each group keeps the digits of a small variance beside a large mean,
        // and makes the variance of a constant group exactly 0.
        for (std::int64_t g = 0; g < job.groups; ++g) {
            const std::int64_t i = g * group_channels * (channels_last ? 1 : job.pixels);
            const Real first = Storage::load(x[i]);
            const Real v = residual ? Storage::load(Storage::store(first + Storage::load(residual[i]))) : first;
            st.pivot[g] = Function::template of<Storage::brief>(v).value;
        }
        const Row pivot = spread([&](auto, auto g) { return st.pivot[g]; });
        Sums<Storage, 1, channels_last> total(rows);
        const auto read = [&](auto with_residual) {
            total.add(
                [&](auto at) {
                    auto v = at.load(x);
                    if constexpr (with_residual) {
                        at.store(sum, v + at.load(residual));
                        v = at.load(sum);
                    }
                    const auto b = Function::template of<Storage::brief>(v).value - at.of(pivot);
                    at.keep(values, b);
                    at.add(0, b);
                },
                x, residual, sum, z);
        };
        residual ? read(std::true_type{}) : read(std::false_type{});
        const Row means = group_means(total.row(0));
        const Row mean = spread([&](auto, auto g) { return means[g]; });
        Sums<Storage, 1, channels_last> squares(rows);
        squares.add([&](auto at) {
            const auto centred = at.kept(values) - at.of(mean);
            at.add(0, centred, centred);
        });
        const Row variance = group_means(squares.row(0));
        const Real eps = static_cast<Real>(job.eps);
        const Real common = mean_over_groups([&](auto g) { return variance[g]; });
        const Real floor = job.scale_preserving ? eps * common : eps;
        const bool dead = job.scale_preserving && common <= kSquareFloor<Real>;  // not where it is NaN, which stays NaN
        st.s[0] = dead ? Real(0) : job.scale_preserving ? square_root(common) : Real(1);
        for (std::int64_t g = 0; g < job.groups; ++g) {
            const Real inverse = Real(1) / (variance[g] + floor);
            st.mean[g] = means[g];
            st.r[g] = dead ? Real(0) : square_root(inverse);
            st.k[g] = dead ? Real(0) : variance[g] * inverse;
        }
        const Row scale = spread([&](auto c, auto g) { return gain[c] * st.s[0] * st.r[g]; });
        if constexpr (Function::identity) {
            const Real* bias = static_cast<const Real*>(job.bias);
            const Row added = spread([&](auto c, auto) { return bias ? bias[c] : Real(0); });
            rows.template each<Storage>(
                [&](auto at) { at.store(z, multiply_add(at.of(scale), at.kept(values) - at.of(mean), at.of(added))); });
        } else {
            rows.template each<Storage>([&](auto at) { at.store(z, at.of(scale) * (at.kept(values) - at.of(mean))); });
        }
    }

    // a_v = phi' a_b + source, with a_b the normalization's transposed Jacobian applied to gain a_z; and what the
    // sample adds to the gradients of gain and bias. The score sweep and the adjoint sweep.
    void backward(std::int64_t sample, std::int64_t share) const {
        const Element* v = at(static_cast<const Element*>(job.x), sample);
        const Element* a = at(static_cast<const Element*>(job.grad), sample);
        const Element* source = sample < job.sourced ? at(static_cast<const Element*>(job.source), sample) : nullptr;
        Element* out = at(static_cast<Element*>(job.out), sample);
        Real *const values = kept.data(), *const firsts = values + size;
        const Statistics st = statistics(sample);
        const Row pivot = spread([&](auto, auto g) { return st.pivot[g]; });
        const Row mean = spread([&](auto, auto g) { return st.mean[g]; });
        Sums<Storage, 2, channels_last> sums(rows);  // of a and a c
        sums.add(
            [&](auto at) {
                const auto grad = at.load(a);
                const auto phi = Function::template of<Storage::brief>(at.load(v));
                const auto centred = phi.value - at.of(pivot) - at.of(mean);
                at.keep(values, centred);
                if constexpr (!Function::identity) at.keep(firsts, phi.first);
                at.add(0, grad);
                at.add(1, grad, centred);
            },
            v, a, source, out);
        add_to_gradients(share, sums.row(0), sums.row(1), st);
        Coefficients from(*this, st, sums.row(0), sums.row(1));
        const auto write = [&](auto with_source) {
            rows.template each<Storage>([&](auto at) {
                const auto g_b = from.apply(at, at.load(a), at.kept(values));
                // At s = 0 every coefficient is 0.
                if constexpr (Function::identity) at.store(out, g_b);
                else if constexpr (with_source) at.store(out, multiply_add(at.kept(firsts), g_b, at.load(source)));
                else at.store(out, at.kept(firsts) * g_b);
            });
        };
        source ? write(std::true_type{}) : write(std::false_type{});
    }

    // The transposed Jacobian as a function of the element: g_b = of_grad g_z + constant + of_centred c.
    struct Coefficients {
        Row of_grad, constant, of_centred;
        Row mq, be;  // per group: mean q and mean(q xh), q = gain g_z
        Real Q = 0;  // mean over groups of k be

        template <typename Place, typename Number>
        Number apply(const Place& at, Number grad, Number centred) const {
            return multiply_add(at.of(of_centred), centred, multiply_add(at.of(of_grad), grad, at.of(constant)));
        }

        Coefficients(const Norm& norm, const Statistics& st, const double* sum_g, const double* sum_gc) {
            std::vector<double> weighted(norm.job.channels), projected(norm.job.channels);
            for (std::int64_t c = 0; c < norm.job.channels; ++c) {
                weighted[c] = norm.gain[c] * sum_g[c];
                projected[c] = norm.gain[c] * sum_gc[c];
            }
            mq = norm.group_means(weighted.data());
            be = norm.group_means(projected.data());
            for (std::int64_t g = 0; g < norm.job.groups; ++g) be[g] *= st.r[g];
            const Real s = st.s[0];
            Real pull = 0;
            if (norm.job.scale_preserving && s != 0) {
                Q = norm.mean_over_groups([&](auto g) { return st.k[g] * be[g]; });
                pull = Q / s;
            }
            of_grad = norm.spread([&](auto c, auto g) { return norm.gain[c] * s * st.r[g]; });
            constant = norm.spread([&](auto, auto g) { return -s * st.r[g] * mq[g]; });
            of_centred = norm.spread([&](auto, auto g) { return pull - s * st.r[g] * st.r[g] * be[g]; });
        }
    };

    void add_to_gradients(std::int64_t share, const double* sum_g, const double* sum_gc, const Statistics& st) const {
        if (Real* out = job.sums_of<Real>(job.gain_grad, share))
            for (std::int64_t g = 0, c = 0; g < job.groups; ++g)
                for (std::int64_t last = c + group_channels; c < last; ++c)
                    out[c] += static_cast<Real>(st.s[0] * st.r[g] * sum_gc[c]);
        if (Real* out = job.sums_of<Real>(job.bias_grad, share))
            for (std::int64_t c = 0; c < job.channels; ++c) out[c] += static_cast<Real>(sum_g[c]);
    }

    // From the score g_z and the tangent vdot: zdot, the source phi' e + phi'' vdot g_b of the adjoint sweep, and
    // what the sample adds to the gradient of the gain. Formulas and names: docs/derivations.md.
    void tangent(std::int64_t sample, std::int64_t share) const {
        const Element* v = at(static_cast<const Element*>(job.x), sample);
        const Element* grad = at(static_cast<const Element*>(job.grad), sample);
        const Element* vdot = at(static_cast<const Element*>(job.tangent), sample);
        Element* zdot = at(static_cast<Element*>(job.tangent_out), sample);
        Element* source = at(static_cast<Element*>(job.out), sample);
        const Statistics st = statistics(sample);
        const Real s = st.s[0];
        if (s == 0) return dead(zdot, source);
        const Row pivot = spread([&](auto, auto g) { return st.pivot[g]; });
        const Row mean = spread([&](auto, auto g) { return st.mean[g]; });
        Sums<Storage, 5, channels_last> sums(rows);  // of g, g c, bdot, bdot c, g bdot
        sums.add(
            [&](auto at) {
                const auto phi = Function::template of<Storage::brief>(at.load(v));
                const auto g = at.load(grad), centred = phi.value - at.of(pivot) - at.of(mean);
                const auto bdot = phi.first * at.load(vdot);
                at.add(0, g);
                at.add(1, g, centred);
                at.add(2, bdot);
                at.add(3, bdot, centred);
                at.add(4, g, bdot);
            },
            v, grad, vdot);
        const Coefficients from(*this, st, sums.row(0), sums.row(1));
        const Row mb = group_means(sums.row(2));
        Row al = group_means(sums.row(3));
        std::vector<double> weighted(job.channels);
        for (std::int64_t g = 0; g < job.groups; ++g) al[g] *= st.r[g];
        for (std::int64_t c = 0; c < job.channels; ++c) weighted[c] = gain[c] * sums.row(4)[c];
        Row R = group_means(weighted.data());
        for (std::int64_t g = 0; g < job.groups; ++g) R[g] -= from.mq[g] * mb[g];
        const Row &mq = from.mq, &be = from.be, r(st.r, st.r + job.groups), k(st.k, st.k + job.groups);

        // J = s r (bdot - mb) + J_centred c;  e = e_bdot (bdot - mb) + e_grad (q - mq) + e_centred c
        Row J_centred(job.groups), e_bdot(job.groups), e_grad(job.groups), e_centred(job.groups);
        if (job.scale_preserving) {
            const Real T = s * s, Q = from.Q, eps = static_cast<Real>(job.eps);
            const Real C = mean_over_groups([&](auto g) { return al[g] / r[g]; });
            auto W = [&](std::int64_t g) { return s * (R[g] - 3 * al[g] * be[g]) + 3 * k[g] * be[g] * C / (r[g] * s); };
            const Real D = -eps / 2 * mean_over_groups([&](auto g) { return r[g] * r[g] * r[g] * W(g); })
                + (mean_over_groups([&](auto g) { return r[g] * (R[g] - al[g] * be[g]); }) - Q * C / T) / (2 * s);
            for (std::int64_t g = 0; g < job.groups; ++g) {
                J_centred[g] = -s * r[g] * r[g] * al[g] + C / s * k[g] * r[g];
                e_bdot[g] = Q / s - s * r[g] * r[g] * be[g];
                e_grad[g] = k[g] * r[g] * C / s - s * r[g] * r[g] * al[g];
                e_centred[g] = 2 * (r[g] * r[g] * be[g] * C / s - r[g] * r[g] * r[g] * W(g) / 2 + D);
            }
        } else {
            for (std::int64_t g = 0; g < job.groups; ++g) {
                J_centred[g] = -r[g] * r[g] * al[g];
                e_bdot[g] = -r[g] * r[g] * be[g];
                e_grad[g] = -r[g] * r[g] * al[g];
                e_centred[g] = -r[g] * r[g] * r[g] * (R[g] - 3 * al[g] * be[g]);
            }
        }
        const Row z_bdot = spread([&](auto c, auto g) { return gain[c] * s * r[g]; });
        const Row z_constant = spread([&](auto c, auto g) { return gain[c] * -s * r[g] * mb[g]; });
        const Row z_centred = spread([&](auto c, auto g) { return gain[c] * J_centred[g]; });
        const Row c_bdot = spread([&](auto, auto g) { return e_bdot[g]; });
        const Row c_grad = spread([&](auto c, auto g) { return gain[c] * e_grad[g]; });
        const Row c_constant = spread([&](auto, auto g) { return -e_bdot[g] * mb[g] - e_grad[g] * mq[g]; });
        const Row c_centred = spread([&](auto, auto g) { return e_centred[g]; });
        rows.template each<Storage>(
            [&](auto at) {
                const auto phi = Function::template of<Storage::brief>(at.load(v));
                const auto g = at.load(grad), dot = at.load(vdot);
                const auto centred = phi.value - at.of(pivot) - at.of(mean), bdot = phi.first * dot;
                const auto e = multiply_add(
                    at.of(c_bdot), bdot,
                    multiply_add(at.of(c_grad), g, multiply_add(at.of(c_centred), centred, at.of(c_constant))));
                at.store(zdot,
                         multiply_add(at.of(z_bdot), bdot, multiply_add(at.of(z_centred), centred, at.of(z_constant))));
                if constexpr (Function::identity) at.store(source, e);
                else at.store(source, multiply_add(phi.first, e, phi.second * dot * from.apply(at, g, centred)));
            },
            zdot, source);
        if (Real* out = job.sums_of<Real>(job.gain_grad, share))
            for (std::int64_t g = 0, c = 0; g < job.groups; ++g)
                for (std::int64_t last = c + group_channels; c < last; ++c)
                    out[c] += static_cast<Real>(s * r[g] * (sums.row(4)[c] - mb[g] * sums.row(0)[c])
                                                + J_centred[g] * sums.row(1)[c]);
    }

    void dead(Element* zdot, Element* source) const {
        for (std::int64_t i = 0; i < size; ++i) zdot[i] = source[i] = Storage::store(Real(0));
    }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
