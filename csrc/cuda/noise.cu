// The C interface of noise, noise levels and the denoising residual.
#include <type_traits>

#include "launch.h"
#include "noise_kernels.h"
#include "sums.h"

namespace cdn {
namespace {

std::int64_t parts(std::int64_t n, std::int64_t of) { return (n + of - 1) / of; }

// Run a kernel on all images, with so many units for a thread; pass.parts is left as it was run with.
template <typename Unit, typename Kernel>
int launch_units(Kernel kernel, int units, NoisePass& pass, std::int64_t batch, int shared, void* stream) {
    pass.parts = static_cast<int>(parts(Unit::units(pass.image), std::int64_t{kThreads} * units));
    if (pass.parts > 0 && batch > kMostBlocks / pass.parts) return kTooLarge;
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
    return batch > kMostBlocks || size >= kMostValues ? kTooLarge : 0;
}

NoiseImage image_of(std::int64_t size, std::int64_t channels, std::uint64_t seed, const std::int64_t* offset,
                    std::int64_t first, const std::int64_t* places) {
    return {static_cast<int>(size), channels ? static_cast<int>(channels) : 1, {seed, offset}, {first, places}};
}

}  // namespace
}  // namespace cdn

// Not all of cdn: its log and exp would stand beside those of CUDA.
using cdn::kRefused, cdn::kThreads, cdn::launch, cdn::launch_units, cdn::NoisePass, cdn::NoiseUnit, cdn::parts,
    cdn::refused, cdn::with_layout, cdn::with_storage;

int cdn_cuda_add_noise(const void* x, const void* sigma, void* y, int type, std::int64_t batch, std::int64_t size,
                       std::int64_t channels, std::uint64_t seed, const std::int64_t* offset, std::int64_t first,
                       const std::int64_t* places, void* stream) {
    if (const int status = refused(batch, size, channels)) return status;
    NoisePass pass{x, sigma, nullptr, y, nullptr, nullptr, cdn::image_of(size, channels, seed, offset, first, places)};
    return with_storage(type, kRefused, [&](auto storage) {
        using Storage = decltype(storage);
        return with_layout<Storage>(pass, [&](auto layout) {
            using Unit = NoiseUnit<Storage, layout.value>;
            return launch_units<Unit>(cdn::add_noise<Storage, layout.value>, 1, pass, batch, 0, stream);
        });
    });
}

int cdn_cuda_sample_sigma(void* sigma, int type, std::int64_t batch, int law, double low, double high,
                          double clean_share, int clean, std::uint64_t seed, const std::int64_t* offset,
                          std::int64_t first, const std::int64_t* places, void* stream) {
    const cdn::Levels levels = cdn::levels_of(law, low, high, clean_share, clean);
    if (!levels.known() || (type != CDN_FLOAT32 && type != CDN_FLOAT64)) return kRefused;
    if (const int status = refused(batch, 0, 0)) return status;
    const dim3 blocks(static_cast<unsigned>(parts(batch, kThreads)));
    const auto run = [&](auto kernel, auto* drawn) {
        return blocks.x ? launch(kernel, blocks, kThreads, 0, stream, drawn, batch, levels,
                                 cdn::StoredKey{seed, offset}, cdn::Places{first, places})
                        : 0;
    };
    return type == CDN_FLOAT64 ? run(cdn::sample_sigma<double>, static_cast<double*>(sigma))
                               : run(cdn::sample_sigma<float>, static_cast<float*>(sigma));
}

int cdn_cuda_denoising(const void* score, const void* sigma, const void* factors, void* errors, void* gradient,
                       int type, std::int64_t batch, std::int64_t size, std::int64_t channels, std::uint64_t seed,
                       const std::int64_t* offset, std::int64_t first, const std::int64_t* places, void* workspace,
                       void* stream) {
    if (size < 1 || !errors == !gradient) return kRefused;
    if (const int status = refused(batch, size, channels)) return status;
    NoisePass pass{score,
                   sigma,
                   factors,
                   gradient,
                   errors,
                   static_cast<double*>(workspace),
                   cdn::image_of(size, channels, seed, offset, first, places)};
    return with_storage(type, kRefused, [&](auto storage) {
        using Storage = decltype(storage);
        return with_layout<Storage>(pass, [&](auto layout) {
            using Unit = NoiseUnit<Storage, layout.value>;
            if (gradient)
                return launch_units<Unit>(cdn::residual_gradient<Storage, layout.value>, 1, pass, batch, 0, stream);
            const int shared = kThreads / 32 * sizeof(double);
            const int status = launch_units<Unit>(cdn::residual_squares<Storage, layout.value>, cdn::kLongest, pass,
                                                  batch, shared, stream);
            if (status || pass.parts == 1 || batch == 0) return status;
            return cdn::add_parts(pass.partial, errors, sizeof(typename Storage::Real) == 8, batch, pass.parts,
                                  static_cast<double>(size), stream);
        });
    });
}

std::int64_t cdn_cuda_denoising_workspace(std::int64_t batch, std::int64_t size) {
    if (const int status = refused(batch, size, 0)) return status;
    const std::int64_t most = parts(parts(size, 4), kThreads * cdn::kLongest);  // of four elements, the smallest unit
    return most > 1 ? batch * most * static_cast<std::int64_t>(sizeof(double)) : 0;
}

int cdn_cuda_random_words(std::uint32_t* words, std::int64_t batch, std::int64_t blocks, int random_stream,
                          std::uint64_t seed, const std::int64_t* offset, void* stream) {
    if (random_stream != cdn::kNormalStream && random_stream != cdn::kLevelStream) return kRefused;
    if (batch < 0 || blocks < 0) return kRefused;
    const std::int64_t count = batch * blocks, programs = parts(count, kThreads);
    if (programs > cdn::kMostBlocks) return cdn::kTooLarge;
    const dim3 where(static_cast<unsigned>(programs));
    return programs ? launch(cdn::random_words, where, kThreads, 0, stream, words, count, blocks,
                             cdn::StoredKey{seed, offset}, static_cast<cdn::Stream>(random_stream))
                    : 0;
}
