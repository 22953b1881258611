// The kernels of noise, noise levels and the denoising residual, which draw from counters.
#pragma once

#include "../levels.h"
#include "noise_units.h"

extern __shared__ __align__(16) unsigned char cdn_shared[];

namespace cdn {

constexpr int kThreads = 128;
constexpr int kLongest = 16;  // units of a thread that sums

struct NoisePass {
    const void *x, *sigma, *factors;  // x: images, or a score
    void *y, *errors;
    double* partial;  // sums of squares, [batch, parts]
    NoiseImage image;
    int parts;  // blocks of threads for an image
};

// What a thread works on: units of the image, one or several.
struct Share {
    const int parts;
    const std::int64_t image = blockIdx.x / parts;
    const int part = blockIdx.x % parts;

    template <typename Real>
    __device__ __forceinline__ Real of(const void* per_image) const {
        return static_cast<const Real*>(per_image)[image];
    }
};

// y = x + sigma eps; x is null for zero, sigma null for one.
template <typename Storage, NoiseLayout kLayout>
__global__ void __launch_bounds__(kThreads, 1) add_noise(const NoisePass pass) {
    using Real = typename Storage::Real;
    using Unit = NoiseUnit<Storage, kLayout>;
    const Share share{pass.parts};
    const Unit unit{pass.image, static_cast<int>(share.part * kThreads + threadIdx.x)};
    if (unit.index >= Unit::units(pass.image)) return;
    const std::int64_t start = share.image * pass.image.size;
    const Real sigma = pass.sigma ? share.of<Real>(pass.sigma) : Real(1);
    Real values[Unit::kCount] = {}, eps[Unit::kCount];
    if (pass.x) unit.read(static_cast<const typename Storage::Element*>(pass.x) + start, values);
    unit.draw(pass.image.places.of(share.image), eps);
#pragma unroll
    for (int i = 0; i < Unit::kCount; ++i) values[i] = pass.x ? values[i] + sigma * eps[i] : sigma * eps[i];
    unit.write(static_cast<typename Storage::Element*>(pass.y) + start, values);
}

// sigma s + eps; images with sigma = 0 have none, and NaN stays NaN.
template <typename Unit, typename Real = typename Unit::Real>
CDN_DEVICE void residual(const Unit& unit, const NoisePass& pass, std::int64_t image, Real sigma,
                         Real (&values)[Unit::kCount]) {
    Real eps[Unit::kCount];
    unit.read(static_cast<const typename Unit::Element*>(pass.x) + image * pass.image.size, values);
    unit.draw(pass.image.places.of(image), eps);
#pragma unroll
    for (int i = 0; i < Unit::kCount; ++i) values[i] = sigma > 0 ? eps[i] + sigma * values[i] : sigma * Real(0);
}

template <typename Storage, NoiseLayout kLayout>
__global__ void __launch_bounds__(kThreads, 1) residual_gradient(const NoisePass pass) {
    using Real = typename Storage::Real;
    using Unit = NoiseUnit<Storage, kLayout>;
    const Share share{pass.parts};
    const Unit unit{pass.image, static_cast<int>(share.part * kThreads + threadIdx.x)};
    if (unit.index >= Unit::units(pass.image)) return;
    const Real sigma = share.of<Real>(pass.sigma);
    Real values[Unit::kCount];
    residual(unit, pass, share.image, sigma, values);
    const Real factor = share.of<Real>(pass.factors) * 2 * sigma / static_cast<Real>(pass.image.size);
#pragma unroll
    for (int i = 0; i < Unit::kCount; ++i) values[i] *= factor;
    unit.write(static_cast<typename Storage::Element*>(pass.y) + share.image * pass.image.size, values);
}

// Sums of squares: of a unit in the computing type, of units, lanes and warps in double, in a fixed order.
template <typename Storage, NoiseLayout kLayout>
__global__ void __launch_bounds__(kThreads, 1) residual_squares(const NoisePass pass) {
    using Real = typename Storage::Real;
    using Unit = NoiseUnit<Storage, kLayout>;
    const Share share{pass.parts};
    const Real sigma = share.of<Real>(pass.sigma);
    double sum = 0;
    for (int i = 0; i < kLongest; ++i) {
        const Unit unit{pass.image, static_cast<int>((share.part * kLongest + i) * kThreads + threadIdx.x)};
        if (unit.index >= Unit::units(pass.image)) break;
        Real values[Unit::kCount], squares = 0;
        residual(unit, pass, share.image, sigma, values);
#pragma unroll
        for (int j = 0; j < Unit::kCount; ++j) squares += unit.exists(j) ? values[j] * values[j] : Real(0);
        sum += squares;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    double* const of_warps = reinterpret_cast<double*>(cdn_shared);
    of_warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < kThreads / 32; ++warp) sum += of_warps[warp];
    if (pass.parts == 1) static_cast<Real*>(pass.errors)[share.image] = static_cast<Real>(sum / pass.image.size);
    else pass.partial[blockIdx.x] = sum;
}

template <typename Real>
__global__ void __launch_bounds__(kThreads, 1)
    sample_sigma(Real* sigma, std::int64_t batch, const Levels levels, StoredKey key, Places places) {
    const std::int64_t image = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (image < batch) sigma[image] = static_cast<Real>(level_at(places.of(image), levels, key));
}

__global__ void __launch_bounds__(kThreads, 1)
    random_words(std::uint32_t* words, std::int64_t count, std::int64_t blocks, StoredKey key, Stream stream) {
    const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= count) return;
    const auto w = philox(static_cast<std::uint32_t>(i % blocks), static_cast<std::uint32_t>(i / blocks), key, stream);
    words[4 * i] = w.w0, words[4 * i + 1] = w.w1, words[4 * i + 2] = w.w2, words[4 * i + 3] = w.w3;
}

}  // namespace cdn
