// The noise kernels, written once and compiled for each processor into the namespace CDN_VARIANT.
#pragma once

#include <algorithm>
#include <type_traits>

#include "lanes.h"
#include "storage.h"
#include "variants.h"

namespace cdn::CDN_VARIANT {
namespace {

constexpr int kBlocks = NoiseJob::kUnit / 4;
static_assert(kBlocks % kLanes == 0, "vectors of words fill a unit");

// Write the normals of `blocks` blocks of the image at a place, in C order: words across blocks, then normals, then
// interleaved, in loops that vectorize. The last vector of words may reach past `blocks`, never past kBlocks.
template <typename Real>
inline void normals(std::uint32_t first, int blocks, std::uint32_t place, Key key, Real* __restrict out) {
    std::uint32_t words[4][kBlocks];
    Real values[4][kBlocks];
    for (int block = 0; block < blocks; block += kLanes) {
        const Words<Lanes> w = philox(lane_numbers() + (first + block), place, key, kNormalStream);
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

// Some elements of an image, consecutive in C order. Channels last they lie apart in memory, and are gathered and
// scattered, so that only moves are slow; images are small enough for the cache to forgive that.
template <typename Storage>
struct Unit {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;

    const NoiseJob& job;
    const std::int64_t index;
    const std::int64_t image = index / job.units_per_image();
    const std::int64_t first = index % job.units_per_image() * NoiseJob::kUnit;
    const std::int64_t count = std::min(job.size - first, NoiseJob::kUnit);

    Real sigma() const { return job.sigma ? static_cast<const Real*>(job.sigma)[image] : Real(1); }

    void draw(Real* eps) const {
        normals(static_cast<std::uint32_t>(first / 4), static_cast<int>((count + 3) / 4), job.places.of(image), job.key,
                eps);
    }

    // The unit's elements of job.x, in the buffer if they lie apart.
    const Element* read(Element* buffer) const {
        const Element* x = static_cast<const Element*>(job.x) + image * job.size;
        if (job.channels == 0) return x + first;
        apart([&](std::int64_t i, std::int64_t place) { buffer[i] = x[place]; });
        return buffer;
    }

    // Call fill(out) to write the unit's elements of job.y.
    template <typename F>
    void write(F fill) const {
        Element* y = static_cast<Element*>(job.y) + image * job.size;
        if (job.channels == 0) return fill(y + first);
        Element buffer[NoiseJob::kUnit];
        fill(buffer);
        apart([&](std::int64_t i, std::int64_t place) { y[place] = buffer[i]; });
    }

    // Call f(number in the unit, index in the image) for elements that lie `channels` apart. Where compilers know how
    // far, as for colours, they read by vectors and compute fewer addresses.
    template <typename F>
    void apart(F f) const {
        job.channels == 3 ? apart(f, std::integral_constant<std::int64_t, 3>{}) : apart(f, job.channels);
    }

    template <typename F, typename Distance>
    void apart(F f, Distance distance) const {
        const std::int64_t pixels = job.size / job.channels;
        std::int64_t channel = first / pixels, pixel = first % pixels;
        for (std::int64_t done = 0; done < count; ++channel, pixel = 0) {
            const std::int64_t here = std::min(pixels - pixel, count - done), start = channel + pixel * distance;
#pragma GCC unroll 8
            for (std::int64_t i = 0; i < here; ++i) f(done + i, start + i * distance);
            done += here;
        }
    }
};

template <typename Storage>
struct AddNoise {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;

    const NoiseJob& job;

    void unit(std::int64_t index) const {
        const Unit<Storage> unit{job, index};
        const Real sigma = unit.sigma();
        Real eps[NoiseJob::kUnit];
        unit.draw(eps);
        if (job.x) {
            Element buffer[NoiseJob::kUnit];
            const Element* x = unit.read(buffer);
            unit.write([&](Element* y) {
                for (std::int64_t i = 0; i < unit.count; ++i)
                    y[i] = Storage::store(Storage::load(x[i]) + sigma * eps[i]);
            });
        } else {
            unit.write([&](Element* y) {
                for (std::int64_t i = 0; i < unit.count; ++i) y[i] = Storage::store(sigma * eps[i]);
            });
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

    void unit(std::int64_t index) const {
        const Unit<Storage> unit{job.noise, index};
        const Real sigma = unit.sigma();
        Real residual[NoiseJob::kUnit];
        if (sigma > 0) {
            unit.draw(residual);
            Element buffer[NoiseJob::kUnit];
            const Element* score = unit.read(buffer);
            for (std::int64_t i = 0; i < unit.count; ++i) residual[i] += sigma * Storage::load(score[i]);
        } else {
            std::fill(residual, residual + unit.count, sigma * Real(0));  // NaN stays NaN
        }
        if (job.partial_sums) {
            job.partial_sums[index] = sum_of_squares(residual, unit.count);
        } else {
            const Real factor =
                static_cast<const Real*>(job.factors)[unit.image] * 2 * sigma / static_cast<Real>(job.noise.size);
            unit.write([&](Element* gradient) {
                for (std::int64_t i = 0; i < unit.count; ++i) gradient[i] = Storage::store(factor * residual[i]);
            });
        }
    }

    static double sum_of_squares(Real* values, std::int64_t count) {
        constexpr int kParts = 8;  // one chain of additions would take long
        std::fill(values + count, values + NoiseJob::kUnit, Real(0));
        double parts[kParts] = {}, sum = 0;
        for (std::int64_t first = 0; first < NoiseJob::kUnit; first += kParts)
            for (int i = 0; i < kParts; ++i) parts[i] += static_cast<double>(values[first + i]) * values[first + i];
        for (double part : parts) sum += part;
        return sum;
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
