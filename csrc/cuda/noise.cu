// Noise, noise levels and the denoising residual, drawn from counters inside the kernels.
#include <cmath>
#include <limits>
#include <type_traits>

#include "launch.h"
#include "noise_units.h"

extern __shared__ __align__(16) unsigned char cdn_shared[];

namespace cdn {
namespace {

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
    unit.draw(share.image, eps);
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
    unit.draw(image, eps);
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

template <typename Real>
CDN_DEVICE void write_error(void* errors, std::int64_t image, double sum, int size) {
    static_cast<Real*>(errors)[image] = static_cast<Real>(sum / size);
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
    if (pass.parts == 1) write_error<Real>(pass.errors, share.image, sum, pass.image.size);
    else pass.partial[blockIdx.x] = sum;
}

template <typename Real>
__global__ void __launch_bounds__(kThreads, 1) add_parts(const NoisePass pass, std::int64_t batch) {
    const std::int64_t image = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (image >= batch) return;
    double sum = 0;
    for (int part = 0; part < pass.parts; ++part) sum += pass.partial[image * pass.parts + part];
    write_error<Real>(pass.errors, image, sum, pass.image.size);
}

// Levels are drawn in double and rounded once, so that every backend draws the same.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 1) sample_sigma(Real* sigma, std::int64_t batch, int law, double low, double high,
                                                         double log_low, double log_range, double clean, Key key) {
    const std::int64_t image = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (image >= batch) return;
    const auto w = philox(std::uint32_t{0}, static_cast<std::uint32_t>(image), key, kLevelStream);
    const double position = (w.w0 + 0.5) * 0x1p-32;
    double level = high;
    if (law == CDN_LOG_UNIFORM) level = ::exp(log_low + position * log_range);
    if (law == CDN_UNIFORM) level = low + position * (high - low);
    sigma[image] = static_cast<Real>(w.w1 < clean ? 0.0 : level);
}

__global__ void __launch_bounds__(kThreads, 1) random_words(std::uint32_t* words, std::int64_t count, std::int64_t blocks,
                                                         Key key, Stream stream) {
    const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= count) return;
    const auto w = philox(static_cast<std::uint32_t>(i % blocks), static_cast<std::uint32_t>(i / blocks), key, stream);
    words[4 * i] = w.w0, words[4 * i + 1] = w.w1, words[4 * i + 2] = w.w2, words[4 * i + 3] = w.w3;
}

std::int64_t parts(std::int64_t n, std::int64_t of) { return (n + of - 1) / of; }

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

// Run a kernel on all images, with so many units for a thread; pass.parts is left as it was run with.
template <typename Unit, typename Kernel>
int launch_units(Kernel kernel, int units, NoisePass& pass, std::int64_t batch, int shared, void* stream) {
    pass.parts = static_cast<int>(parts(Unit::units(pass.image), std::int64_t{kThreads} * units));
    if (pass.parts > 0 && batch > kMost / pass.parts) return kTooLarge;
    const dim3 blocks(static_cast<unsigned>(batch * pass.parts));
    return blocks.x ? launch(kernel, blocks, kThreads, shared, stream, pass) : 0;
}

// Call f with the layout, as a constant, that suits images and their addresses.
template <typename Storage, typename F>
int with_layout(const NoisePass& pass, F f) {
    if (aligned(kVectorBytes, pass.x, pass.y)) {
        if (NoiseUnit<Storage, kInOrder>::fits(pass.image)) return f(std::integral_constant<NoiseLayout, kInOrder>{});
        if (NoiseUnit<Storage, kColours>::fits(pass.image)) return f(std::integral_constant<NoiseLayout, kColours>{});
    }
    return f(std::integral_constant<NoiseLayout, kScattered>{});
}

int refused(std::int64_t batch, std::int64_t size, std::int64_t channels) {
    if (batch < 0 || size < 0 || channels < 0 || (channels && size % channels)) return kRefused;
    return batch > kMost || size > kMost ? kTooLarge : 0;
}

NoiseImage image_of(std::int64_t size, std::int64_t channels, std::uint64_t seed, std::uint64_t offset) {
    return {static_cast<int>(size), channels ? static_cast<int>(channels) : 1, {seed, offset}};
}

}  // namespace
}  // namespace cdn

// Not all of cdn: its log and exp would stand beside those of CUDA.
using cdn::Key, cdn::kRefused, cdn::kThreads, cdn::launch, cdn::launch_units, cdn::NoisePass, cdn::NoiseUnit, cdn::parts,
    cdn::refused, cdn::with_layout, cdn::with_storage;

int cdn_cuda_add_noise(const void* x, const void* sigma, void* y, int type, std::int64_t batch, std::int64_t size,
                       std::int64_t channels, std::uint64_t seed, std::uint64_t offset, void* stream) {
    if (const int status = refused(batch, size, channels)) return status;
    NoisePass pass{x, sigma, nullptr, y, nullptr, nullptr, cdn::image_of(size, channels, seed, offset)};
    return with_storage(type, kRefused, [&](auto storage) {
        using Storage = decltype(storage);
        return with_layout<Storage>(pass, [&](auto layout) {
            return launch_units<NoiseUnit<Storage, layout.value>>(cdn::add_noise<Storage, layout.value>, 1, pass, batch, 0,
                                                                  stream);
        });
    });
}

int cdn_cuda_sample_sigma(void* sigma, int type, std::int64_t batch, int law, double low, double high,
                          double clean_share, std::uint64_t seed, std::uint64_t offset, void* stream) {
    if (law < CDN_LOG_UNIFORM || law > CDN_FIXED || (type != CDN_FLOAT32 && type != CDN_FLOAT64)) return kRefused;
    if (const int status = refused(batch, 0, 0)) return status;
    const dim3 blocks(static_cast<unsigned>(parts(batch, kThreads)));
    const double log_low = std::log(low), log_range = std::log(high) - log_low;
    const auto run = [&](auto kernel, auto* levels) {
        return blocks.x ? launch(kernel, blocks, kThreads, 0, stream, levels, batch, law, low, high, log_low, log_range,
                                 clean_share * 0x1p32, Key{seed, offset}) : 0;
    };
    return type == CDN_FLOAT64 ? run(cdn::sample_sigma<double>, static_cast<double*>(sigma))
                               : run(cdn::sample_sigma<float>, static_cast<float*>(sigma));
}

int cdn_cuda_denoising(const void* score, const void* sigma, const void* factors, void* errors, void* gradient, int type,
                       std::int64_t batch, std::int64_t size, std::int64_t channels, std::uint64_t seed,
                       std::uint64_t offset, void* workspace, void* stream) {
    if (size < 1 || !errors == !gradient) return kRefused;
    if (const int status = refused(batch, size, channels)) return status;
    NoisePass pass{score, sigma, factors, gradient, errors, static_cast<double*>(workspace),
                   cdn::image_of(size, channels, seed, offset)};
    return with_storage(type, kRefused, [&](auto storage) {
        using Storage = decltype(storage);
        return with_layout<Storage>(pass, [&](auto layout) {
            using Unit = NoiseUnit<Storage, layout.value>;
            if (gradient)
                return launch_units<Unit>(cdn::residual_gradient<Storage, layout.value>, 1, pass, batch, 0, stream);
            const int shared = kThreads / 32 * sizeof(double);
            const int status = launch_units<Unit>(cdn::residual_squares<Storage, layout.value>, cdn::kLongest, pass, batch, shared,
                                                  stream);
            if (status || pass.parts == 1 || batch == 0) return status;
            const dim3 blocks(static_cast<unsigned>(parts(batch, kThreads)));
            return launch(cdn::add_parts<typename Storage::Real>, blocks, kThreads, 0, stream, pass, batch);
        });
    });
}

std::int64_t cdn_cuda_denoising_workspace(std::int64_t batch, std::int64_t size) {
    if (const int status = refused(batch, size, 0)) return status;
    const std::int64_t most = parts(parts(size, 4), kThreads * cdn::kLongest);  // of four elements, the smallest unit
    return most > 1 ? batch * most * static_cast<std::int64_t>(sizeof(double)) : 0;
}

int cdn_cuda_random_words(std::uint32_t* words, std::int64_t batch, std::int64_t blocks, int random_stream,
                          std::uint64_t seed, std::uint64_t offset, void* stream) {
    if ((random_stream != cdn::kNormalStream && random_stream != cdn::kLevelStream) || batch < 0 || blocks < 0) return kRefused;
    const std::int64_t count = batch * blocks, programs = parts(count, kThreads);
    if (programs > cdn::kMost) return cdn::kTooLarge;
    return programs ? launch(cdn::random_words, dim3(static_cast<unsigned>(programs)), kThreads, 0, stream, words, count,
                             blocks, Key{seed, offset}, static_cast<cdn::Stream>(random_stream)) : 0;
}
