// The noise kernels, written once and compiled for each processor into the namespace CDN_VARIANT.
#pragma once

#include <algorithm>

#include "lanes.h"
#include "storage.h"
#include "variants.h"

namespace cdn::CDN_VARIANT {
namespace {

constexpr int kBlocks = NoiseJob::kUnit / 4;
static_assert(kBlocks % kLanes == 0, "vectors of words fill a unit");

// Write the normals of `blocks` blocks of an image, in C order: words across blocks, then normals, then
// interleaved, in loops that vectorize. The last vector of words may reach past `blocks`, never past kBlocks.
template <typename Real>
inline void normals(std::uint32_t first, int blocks, std::uint32_t image, Key key, Real* __restrict out) {
    std::uint32_t words[4][kBlocks];
    Real values[4][kBlocks];
    for (int block = 0; block < blocks; block += kLanes) {
        const Words<Lanes> w = philox(lane_numbers() + (first + block), image, key, kNormalStream);
        const Lanes in_order[] = {w.w0, w.w1, w.w2, w.w3};
        for (int i = 0; i < 4; ++i) std::memcpy(words[i] + block, &in_order[i], sizeof(Lanes));
    }
    for (int block = 0; block < blocks; ++block) {
        box_muller(words[0][block], words[1][block], values[0][block], values[1][block]);
        box_muller(words[2][block], words[3][block], values[2][block], values[3][block]);
    }
    for (int block = 0; block < blocks; ++block)
        for (int i = 0; i < 4; ++i) out[4 * block + i] = values[i][block];
}

template <typename Storage>
struct AddNoise {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;

    const NoiseJob& job;
    const Element* x = static_cast<const Element*>(job.x);
    Element* y = static_cast<Element*>(job.y);

    void unit(std::int64_t index) const {
        const std::int64_t image = index / job.units_per_image();
        const std::int64_t first = index % job.units_per_image() * NoiseJob::kUnit;
        const std::int64_t count = job.size - first < NoiseJob::kUnit ? job.size - first : NoiseJob::kUnit;
        Real eps[NoiseJob::kUnit];
        normals(static_cast<std::uint32_t>(first / 4), static_cast<int>((count + 3) / 4),
                static_cast<std::uint32_t>(image), job.key, eps);
        const Real sigma = job.sigma ? static_cast<const Real*>(job.sigma)[image] : Real(1);
        const Element* in = x ? x + image * job.size : nullptr;
        Element* out = y + image * job.size;
        if (job.channels > 0) return channels_last(in, out, eps, sigma, first, count);
        in ? add(in + first, out + first, eps, sigma, count) : scale(out + first, eps, sigma, count);
    }

    static void add(const Element* __restrict in, Element* __restrict out, const Real* __restrict eps,
                    Real sigma, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i)
            out[i] = Storage::store(Storage::load(in[i]) + sigma * eps[i]);
    }

    static void scale(Element* __restrict out, const Real* __restrict eps, Real sigma, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i) out[i] = Storage::store(sigma * eps[i]);
    }

    // The elements of a unit lie `channels` apart; images are small enough for the cache to forgive that.
    void channels_last(const Element* in, Element* out, const Real* eps, Real sigma, std::int64_t first,
                       std::int64_t count) const {
        const std::int64_t pixels = job.size / job.channels;
        std::int64_t channel = first / pixels, pixel = first % pixels;
        for (std::int64_t done = 0; done < count; ++channel, pixel = 0) {
            for (; pixel < pixels && done < count; ++pixel, ++done) {
                const std::int64_t i = pixel * job.channels + channel;
                out[i] = Storage::store(in ? Storage::load(in[i]) + sigma * eps[done] : sigma * eps[done]);
            }
        }
    }
};

// The residual sigma s + eps of each element: its square into a partial sum, or its multiple into the gradient. Images
// with sigma = 0 have none.
template <typename Storage>
struct Residual {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;

    const ResidualJob& job;
    const NoiseJob& noise = job.noise;

    void unit(std::int64_t index) const {
        const std::int64_t image = index / noise.units_per_image();
        const std::int64_t first = index % noise.units_per_image() * NoiseJob::kUnit;
        const std::int64_t count = noise.size - first < NoiseJob::kUnit ? noise.size - first : NoiseJob::kUnit;
        const Real sigma = static_cast<const Real*>(noise.sigma)[image];
        Real residual[NoiseJob::kUnit];
        if (sigma > 0) {
            normals(static_cast<std::uint32_t>(first / 4), static_cast<int>((count + 3) / 4),
                    static_cast<std::uint32_t>(image), noise.key, residual);
            each(image, first, count, [&](std::int64_t done, std::int64_t i) {
                residual[done] += sigma * Storage::load(static_cast<const Element*>(noise.x)[i]);
            });
        } else {
            std::fill(residual, residual + count, sigma * Real(0));  // NaN stays NaN
        }
        if (job.partial_sums) {
            double sum = 0;
            for (std::int64_t i = 0; i < count; ++i) sum += static_cast<double>(residual[i]) * residual[i];
            job.partial_sums[index] = sum;
        } else {
            const Real factor = static_cast<const Real*>(job.factors)[image] * 2 * sigma
                / static_cast<Real>(noise.size);
            each(image, first, count, [&](std::int64_t done, std::int64_t i) {
                static_cast<Element*>(noise.y)[i] = Storage::store(factor * residual[done]);
            });
        }
    }

    // Call f(number within the unit, index in memory) for the elements of a unit.
    template <typename F>
    void each(std::int64_t image, std::int64_t first, std::int64_t count, F f) const {
        const std::int64_t start = image * noise.size, step = noise.channels > 0 ? noise.channels : 1;
        const std::int64_t pixels = noise.channels > 0 ? noise.size / noise.channels : noise.size;
        std::int64_t channel = first / pixels, pixel = first % pixels;
        for (std::int64_t done = 0; done < count; ++channel, pixel = 0) {
            const std::int64_t here = std::min(pixels - pixel, count - done);
            const std::int64_t base = start + channel + pixel * step;
            for (std::int64_t i = 0; i < here; ++i) f(done + i, base + i * step);
            done += here;
        }
    }
};

template <template <typename> class Kernel, typename Job>
void run(const Job& job, int type, std::int64_t first, std::int64_t last) {
    with_storage(type, [&](auto storage) {
        const Kernel<decltype(storage)> kernel{job};
        for (std::int64_t index = first; index < last; ++index) kernel.unit(index);
    });
}

void add_noise(const NoiseJob& job, std::int64_t first, std::int64_t last) {
    run<AddNoise>(job, job.type, first, last);
}

void residual(const ResidualJob& job, std::int64_t first, std::int64_t last) {
    run<Residual>(job, job.noise.type, first, last);
}

void random_words(std::uint32_t* words, std::int64_t batch, std::int64_t blocks, Key key, Stream stream) {
    for (std::int64_t image = 0; image < batch; ++image) {
        for (std::int64_t block = 0; block < blocks; ++block) {
            const Lanes counter = lane_numbers() + static_cast<std::uint32_t>(block / kLanes * kLanes);
            const Words<Lanes> w = philox(counter, static_cast<std::uint32_t>(image), key, stream);
            std::uint32_t* out = words + 4 * (image * blocks + block);
            const int lane = block % kLanes;
            out[0] = w.w0[lane], out[1] = w.w1[lane], out[2] = w.w2[lane], out[3] = w.w3[lane];
        }
    }
}

}  // namespace

extern const NoiseKernels noise{add_noise, residual, random_words};

}  // namespace cdn::CDN_VARIANT
