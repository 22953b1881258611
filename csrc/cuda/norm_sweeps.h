// The kernels of residual + GELU + group normalization, one for each sweep; names and formulas: docs/derivations.md.
//
// A sweep of a sample sums over its pixels, folds the sums of channels into scalars of groups, and writes.
#pragma once

#include "norm_block.h"

namespace cdn {

// v = x + residual, statistics, and z = gain s r (phi(v) - mean).
template <typename Storage, int N>
__global__ void __launch_bounds__(kMostThreads, 1) norm_forward(const NormPass pass) {
    using Real = typename Storage::Real;
    enum { kMean, kSquares };  // sums: mean of b - pivot, and squares about it
    enum { kGroupMean, kVariance, kR, kPivot };
    constexpr NormNeeds needs = kNormNeeds[CDN_FORWARD];
    const NormBlock<Storage, N, needs.sums> block(pass.cut, needs);
    const NormCut& cut = block.cut;
    const auto statistics = block.statistics(pass.statistics);

    // Differences from one value of each group keep the digits of a small variance beside a large mean, and make the
    // variance of a constant group exactly 0.
    const auto pivot_of = [&](int group) {
        const int first = block.first_channel + group * cut.width;
        Real v = Storage::load(block.at(pass.x)[first]);
        if (pass.residual) v = Storage::load(Storage::store(v + Storage::load(block.at(pass.residual)[first])));
        return gelu<Storage::brief>(v).value;
    };
    block.each_group([&](int g) { block.scalar(kPivot, g) = pivot_of(g); });
    const Real pivot = block.scalar(kPivot, block.group);

    if (pass.phase != kWritePass) {
        const auto x = block.kept_tape(pass.x, 0), residual = block.passing_tape(pass.residual, needs.kept);
        const auto sum = block.vectors(pass.sum);
        Numbers<Storage, N> mean{}, squares{};
        Real visits = 0;
        // Welford's recurrence: squares about the true mean, in one reading.
        block.walk(
            false,
            [&](int step, int place) {
                auto v = x.read(step);
                if (pass.residual) {
                    const auto other = residual.read(step);
#pragma unroll
                    for (int i = 0; i < N; ++i) v[i] += other[i];
                    const auto rounded = packed(v);
                    *x.slot(step) = rounded;
                    sum[place] = rounded;
                    v = unpacked(rounded);
                }
                visits += 1;
                const Real share = Real(1) / visits;
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const Real b = gelu<Storage::brief>(v[i]).value - pivot, difference = b - mean[i];
                    mean[i] = multiply_add(difference, share, mean[i]);
                    squares[i] = multiply_add(difference, b - mean[i], squares[i]);
                }
            },
            x, residual);
        Numbers<Storage, N> weighted;
#pragma unroll
        for (int i = 0; i < N; ++i) weighted[i] = mean[i] * (visits / block.count);
        block.add_rows(kMean, weighted);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const Real difference = mean[i] - block.total(kMean, block.channel + i);
            squares[i] = multiply_add(visits * difference, difference, squares[i]);
        }
        block.add_rows(kSquares, squares);
        if (pass.phase == kSumPass) return block.write_partial(pass.sums);
    } else {
        // Merge the means and squares of chunks of pixels, in their order.
        block.each_channel([&](int c) {
            const auto share = [&](int chunk) {
                return static_cast<Real>(min(cut.chunk, cut.pixels - chunk * cut.chunk)) / cut.pixels;
            };
            Real mean = 0, squares = 0;
            for (int chunk = 0; chunk < cut.chunks; ++chunk)
                mean = multiply_add(share(chunk), block.partial(pass.sums, chunk, kMean, c), mean);
            for (int chunk = 0; chunk < cut.chunks; ++chunk) {
                const Real difference = block.partial(pass.sums, chunk, kMean, c) - mean;
                squares += multiply_add(share(chunk) * cut.pixels * difference, difference,
                                        block.partial(pass.sums, chunk, kSquares, c));
            }
            block.total(kMean, c) = mean;
            block.total(kSquares, c) = squares;
        });
        __syncthreads();
    }

    block.each_group([&](int g) {
        const Real mean = block.over_channels(g, [&](int c) { return block.total(kMean, c); }) / cut.width;
        const Real squares = block.over_channels(g, [&](int c) {
            const Real difference = block.total(kMean, c) - mean;
            return multiply_add(cut.pixels * difference, difference, block.total(kSquares, c));
        });
        block.scalar(kGroupMean, g) = mean;
        block.scalar(kVariance, g) = squares / (static_cast<Real>(cut.width) * cut.pixels);
    });
    const Real eps = static_cast<Real>(pass.eps);
    const Real common = cut.coupled ? block.over_groups([&](int g) { return block.scalar(kVariance, g); }) : Real(1);
    const bool dead = cut.coupled && common <= kSquareFloor<Real>;  // not where it is NaN, which stays NaN
    const Real s = dead ? Real(0) : cut.coupled ? square_root(common) : Real(1);
    block.each_group([&](int g) {
        const Real variance = block.scalar(kVariance, g), inverse = Real(1) / (variance + eps * common);
        const Real r = dead ? Real(0) : square_root(inverse);
        block.scalar(kR, g) = r;
        if (!block.leads()) return;
        statistics.pivot[g] = block.scalar(kPivot, g);
        statistics.mean[g] = block.scalar(kGroupMean, g);
        statistics.r[g] = r;
        statistics.k[g] = dead ? Real(0) : variance * inverse;
        if (block.first_group + g == 0) *statistics.s = s;
    });

    const Real mean = block.scalar(kGroupMean, block.group), r = block.scalar(kR, block.group);
    auto scale = block.gains(pass.gain);
#pragma unroll
    for (int i = 0; i < N; ++i) scale[i] *= s * r;
    const auto v = block.kept_tape(pass.residual ? pass.sum : pass.x, 0);
    const auto z = block.vectors(pass.out);
    block.walk(
        true,
        [&](int step, int place) {
            auto value = v.read(step);
#pragma unroll
            for (int i = 0; i < N; ++i) value[i] = scale[i] * (gelu<Storage::brief>(value[i]).value - pivot - mean);
            z[place] = packed(value);
        },
        v);
}

// What the sweeps after the first know of the thread's group: c = b - pivot - mean, and g_b = s r q + g_constant +
// g_centred c with q = gain g_z.
template <typename Real>
struct NormGroup {
    Real pivot, mean, r, s, g_constant, g_centred;

    __device__ __forceinline__ Real centred(Real b) const { return b - pivot - mean; }
    __device__ __forceinline__ Real g_b(Real q, Real c) const {
        return multiply_add(s * r, q, multiply_add(g_centred, c, g_constant));
    }
};

// Fold the sums of g_z and of g_z c into the scalars mq and be, and find the thread's group. Returns Q.
template <typename Block, typename Real = typename Block::Real>
CDN_DEVICE Real norm_project(const Block& block, const NormPass& pass, int sum_g, int sum_gc, int mq, int be,
                             NormGroup<Real>& mine) {
    const NormCut& cut = block.cut;
    const auto statistics = block.statistics(pass.statistics);
    const Real* gain = static_cast<const Real*>(pass.gain) + block.first_channel;
    const Real count = static_cast<Real>(cut.width) * cut.pixels;
    block.each_group([&](int g) {
        const auto mean = [&](int k) {
            return block.over_channels(g, [&](int c) { return gain[c] * block.total(k, c); }) / count;
        };
        block.scalar(mq, g) = mean(sum_g);
        block.scalar(be, g) = mean(sum_gc) * statistics.r[g];
    });
    const Real s = mine.s, r = mine.r;
    Real Q = 0;
    if (cut.coupled) Q = block.over_groups([&](int g) { return statistics.k[g] * block.scalar(be, g); });
    const Real pull = s == 0 ? Real(0) : Q / s;
    mine.g_constant = -s * r * block.scalar(mq, block.group);
    mine.g_centred = pull - s * r * r * block.scalar(be, block.group);
    return Q;
}

template <typename Block, typename Real = typename Block::Real>
CDN_DEVICE NormGroup<Real> norm_group(const Block& block, const NormPass& pass) {
    const auto statistics = block.statistics(pass.statistics);
    const int g = block.group;
    return {statistics.pivot[g], statistics.mean[g], statistics.r[g], *statistics.s};
}

// phi' g_b + source, and the sample's share in the gradient of the gain: the score sweep and the adjoint sweep.
template <typename Storage, int N>
__global__ void __launch_bounds__(kMostThreads, 1) norm_backward(const NormPass pass) {
    using Real = typename Storage::Real;
    enum { kG, kGC };  // sums
    enum { kMq, kBe };
    constexpr NormNeeds needs = kNormNeeds[CDN_BACKWARD];
    const NormBlock<Storage, N, needs.sums> block(pass.cut, needs);
    const auto v = block.kept_tape(pass.x, 0), grad = block.kept_tape(pass.grad, 1);
    const auto source = block.passing_tape(pass.source, needs.kept);
    auto mine = norm_group(block, pass);

    if (pass.phase != kWritePass) {
        Numbers<Storage, N> sum_g{}, sum_gc{};
        block.walk(
            false,
            [&](int step, int) {
                const auto u = v.read(step), g = grad.read(step);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const Real c = mine.centred(gelu<Storage::brief>(u[i]).value);
                    sum_g[i] += g[i];
                    sum_gc[i] = multiply_add(g[i], c, sum_gc[i]);
                }
            },
            v, grad);
        block.add_rows(kG, sum_g);
        block.add_rows(kGC, sum_gc);
        if (pass.phase == kSumPass) return block.write_partial(pass.sums);
    } else {
        block.read_partials(pass.sums);
    }

    norm_project(block, pass, kG, kGC, kMq, kBe, mine);
    if (pass.gain_grad && block.leads()) {
        const auto statistics = block.statistics(pass.statistics);
        Real* share = static_cast<Real*>(pass.gain_grad) + block.sample * block.cut.channels + block.first_channel;
        block.each_channel([&](int c) { share[c] = mine.s * statistics.r[c / block.cut.width] * block.total(kGC, c); });
    }

    const auto gain = block.gains(pass.gain);
    const auto out = block.vectors(pass.out);
    block.walk(
        true,
        [&](int step, int place) {
            const auto u = v.read(step);
            auto g = grad.read(step);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const auto phi = gelu<Storage::brief>(u[i]);
                g[i] = phi.first * mine.g_b(gain[i] * g[i], mine.centred(phi.value));
            }
            if (pass.source) {
                const auto other = source.read(step);
#pragma unroll
                for (int i = 0; i < N; ++i) g[i] += other[i];
            }
            out[place] = packed(g);
        },
        v, grad, source);
}

// From the score g_z and the tangent vdot: zdot, the source phi' e + phi'' vdot g_b of the adjoint sweep, and the share
// of the sample in the gradient of the gain.
template <typename Storage, int N>
__global__ void __launch_bounds__(kMostThreads, 1) norm_tangent(const NormPass pass) {
    using Real = typename Storage::Real;
    enum { kG, kGC, kB, kBC, kGB };  // sums of g, g c, bdot, bdot c, g bdot
    enum { kMq, kBe, kMb, kAl, kR, kJ0, kJC };
    constexpr NormNeeds needs = kNormNeeds[CDN_TANGENT];
    const NormBlock<Storage, N, needs.sums> block(pass.cut, needs);
    const NormCut& cut = block.cut;
    const auto v = block.kept_tape(pass.x, 0), grad = block.kept_tape(pass.grad, 1);
    const auto dot = block.kept_tape(pass.tangent, 2);
    auto mine = norm_group(block, pass);

    if (pass.phase != kWritePass) {
        Numbers<Storage, N> sum_g{}, sum_gc{}, sum_b{}, sum_bc{}, sum_gb{};
        block.walk(
            false,
            [&](int step, int) {
                const auto u = v.read(step), g = grad.read(step), vdot = dot.read(step);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const auto phi = gelu<Storage::brief>(u[i]);
                    const Real c = mine.centred(phi.value), bdot = phi.first * vdot[i];
                    sum_g[i] += g[i];
                    sum_gc[i] = multiply_add(g[i], c, sum_gc[i]);
                    sum_b[i] += bdot;
                    sum_bc[i] = multiply_add(bdot, c, sum_bc[i]);
                    sum_gb[i] = multiply_add(g[i], bdot, sum_gb[i]);
                }
            },
            v, grad, dot);
        block.add_rows(kG, sum_g);
        block.add_rows(kGC, sum_gc);
        block.add_rows(kB, sum_b);
        block.add_rows(kBC, sum_bc);
        block.add_rows(kGB, sum_gb);
        if (pass.phase == kSumPass) return block.write_partial(pass.sums);
    } else {
        block.read_partials(pass.sums);
    }

    const Real Q = norm_project(block, pass, kG, kGC, kMq, kBe, mine);
    const auto statistics = block.statistics(pass.statistics);
    const Real* gain = static_cast<const Real*>(pass.gain) + block.first_channel;
    const Real count = static_cast<Real>(cut.width) * cut.pixels;
    block.each_group([&](int g) {
        const Real mb = block.over_channels(g, [&](int c) { return block.total(kB, c); }) / count;
        block.scalar(kMb, g) = mb;
        block.scalar(kAl, g) =
            block.over_channels(g, [&](int c) { return block.total(kBC, c); }) / count * statistics.r[g];
        block.scalar(kR, g) = block.over_channels(g, [&](int c) { return gain[c] * block.total(kGB, c); }) / count
            - block.scalar(kMq, g) * mb;
    });

    // J = s r bdot + J0 + JC c;  e = e_b bdot + e_q q + e_0 + e_c c. In a dead sample r, k and s are 0, and all of it.
    const Real s = mine.s, r = mine.r, T = s * s, eps = static_cast<Real>(pass.eps);
    const Real alive_s = s == 0 ? Real(1) : s;
    const auto alive = [](Real r) { return r == 0 ? Real(1) : r; };
    Real C = 0, D = 0;
    const auto W = [&](int g) {
        const Real r = statistics.r[g], al = block.scalar(kAl, g), be = block.scalar(kBe, g);
        return s * (block.scalar(kR, g) - 3 * al * be) + 3 * statistics.k[g] * be * C / (alive(r) * alive_s);
    };
    if (cut.coupled) {
        C = block.over_groups([&](int g) { return block.scalar(kAl, g) / alive(statistics.r[g]); });
        const Real cubes = block.over_groups([&](int g) {
            const Real r = statistics.r[g];
            return r * r * r * W(g);
        });
        const Real rest = block.over_groups([&](int g) {
            return statistics.r[g] * (block.scalar(kR, g) - block.scalar(kAl, g) * block.scalar(kBe, g));
        });
        D = -eps / 2 * cubes + (rest - Q * C / (s == 0 ? Real(1) : T)) / (2 * alive_s);
    }
    block.each_group([&](int g) {
        const Real r = statistics.r[g];
        block.scalar(kJ0, g) = -s * r * block.scalar(kMb, g);
        block.scalar(kJC, g) = -s * r * r * block.scalar(kAl, g) + C / alive_s * statistics.k[g] * r;
    });
    if (pass.gain_grad && block.leads()) {
        Real* share = static_cast<Real*>(pass.gain_grad) + block.sample * cut.channels + block.first_channel;
        block.each_channel([&](int c) {
            const int g = c / cut.width;
            share[c] = s * statistics.r[g] * block.total(kGB, c) + block.scalar(kJ0, g) * block.total(kG, c)
                + block.scalar(kJC, g) * block.total(kGC, c);
        });
    }

    const Real be = block.scalar(kBe, block.group), al = block.scalar(kAl, block.group);
    const Real e_b = Q / alive_s - s * r * r * be;
    const Real e_q = statistics.k[block.group] * r * C / alive_s - s * r * r * al;
    const Real e_0 = -e_b * block.scalar(kMb, block.group) - e_q * block.scalar(kMq, block.group);
    const Real e_c = 2 * (r * r * be * C / alive_s - r * r * r * W(block.group) / 2 + D);
    const Real J0 = block.scalar(kJ0, block.group), JC = block.scalar(kJC, block.group);
    const auto gains = block.gains(pass.gain);
    const auto source = block.vectors(pass.out), zdot = block.vectors(pass.tangent_out);
    block.walk(
        true,
        [&](int step, int place) {
            const auto u = v.read(step), g = grad.read(step), vdot = dot.read(step);
            Numbers<Storage, N> z, e;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const auto phi = gelu<Storage::brief>(u[i]);
                const Real c = mine.centred(phi.value), bdot = phi.first * vdot[i], q = gains[i] * g[i];
                z[i] = gains[i] * multiply_add(s * r, bdot, multiply_add(JC, c, J0));
                const Real slope = multiply_add(e_b, bdot, multiply_add(e_q, q, multiply_add(e_c, c, e_0)));
                e[i] = multiply_add(phi.first, slope, phi.second * vdot[i] * mine.g_b(q, c));
            }
            zdot[place] = packed(z);
            source[place] = packed(e);
        },
        v, grad, dot);
}

}  // namespace cdn
