// The gradient of a convolution by its filters with minimal filtering.
//
// Transformed patches and transformed gradients are multiplied and summed over all tiles frequency by frequency, and
// transformed back once. A unit is a range of output channels times a chunk of tiles. The order of summation depends on
// the chunks alone, which follow from the shape, not on the ranges, which employ the threads there are.
#pragma once

#include "winograd_image.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Storage, int tile>
class WinogradWeight {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    using Spectrum = Frequencies<Real, tile>;
    static constexpr std::int64_t kFrequencies = (tile + 2) * (tile + 2);
    static constexpr std::int64_t kMostChunks = 8, kChunkTiles = 128, kChunkBytes = 5 << 20;
    static constexpr std::int64_t kMostTiles = 16 * kRows;  // of a block
    static constexpr std::int64_t kSquare = 64 / (kVectors * kLanes) * kPanel<Real>;  // channels of sums that stay near

public:
    WinogradWeight(const ConvolutionJob& job, int threads) : job_(job), tiles_(job) {
        columns_ = round_up(job.inputs, kWide<Real>);
        const std::int64_t bytes = sizeof(Real), all = kFrequencies * job.outputs * columns_ * bytes;
        chunks_ = std::min({kMostChunks, tiles_.count() / kChunkTiles, kChunkBytes / all});
        chunk_ = divide_up(tiles_.count(), std::max<std::int64_t>(1, chunks_));
        chunks_ = divide_up(tiles_.count(), chunk_);
        const std::int64_t wanted = divide_up(threads, chunks_);
        part_ = std::min(job.outputs, round_up(divide_up(job.outputs, wanted), kPanel<Real>));
        parts_ = divide_up(job.outputs, part_);
        rows_ = round_up(part_, kWide<Real>);
        const std::int64_t each = kFrequencies * (columns_ + rows_) * bytes;
        block_ = std::clamp(kBlockBytes / each, kFewestTiles, kMostTiles);
        whole_ = chunks_ == 1 && block_ >= chunk_;
        patches_ = frequency_distance(block_ * columns_, bytes);
        gradients_ = frequency_distance(block_ * rows_, bytes);
        sums_ =
            whole_ ? frequency_distance(kSquare * kSquare, bytes) : frequency_distance(job.outputs * columns_, bytes);
    }

    ConvolutionPlan plan() const {
        const std::int64_t bytes = sizeof(Real), own = kFrequencies * (patches_ + gradients_) * bytes;
        const std::int64_t sums = kFrequencies * sums_ * bytes;
        if (whole_) return {0, parts_, 0, 0, own + sums};
        return {0, parts_ * chunks_, job_.outputs, chunks_ * sums, own};
    }

    void multiply_chunk(Real* sums, Real* scratch, std::int64_t unit) const {
        const std::int64_t part = unit % parts_, chunk = unit / parts_;
        const std::int64_t output = part * part_, outputs = std::min(part_, job_.outputs - output);
        const std::int64_t start = chunk * chunk_, end = std::min(start + chunk_, tiles_.count());
        Real *patches = scratch, *gradients = scratch + kFrequencies * patches_;
        if (whole_) {
            transform_tiles(patches, gradients, start, end, output, outputs);
            return multiply_whole(patches, gradients, gradients + kFrequencies * gradients_, output, outputs);
        }
        const auto* images = static_cast<const Element*>(job_.first);
        const auto* results = static_cast<const Element*>(job_.second);
        Real* sum = sums + chunk * kFrequencies * sums_ + output * columns_;
        const Distances distances{1, rows_, columns_, columns_};
        const std::int64_t steps = kFrequencies * divide_up(columns_, kPanel<Real>) * divide_up(outputs, kRows);
        for (std::int64_t first = start; first < end; first += block_) {
            const std::int64_t last = std::min(first + block_, end);
            transform_tiles(patches, gradients, first, last, output, outputs);
            const auto [next, next_end] = tiles_.pixels(last, std::min(last + block_, end));
            Wanted wanted;
            wanted.add(images + next * job_.inputs, images + next_end * job_.inputs, steps);
            wanted.add(results + next * job_.outputs, results + next_end * job_.outputs, steps);
            for (int f = 0; f < kFrequencies; ++f)
                for (std::int64_t column = 0; column < columns_; column += kPanel<Real>)
                    multiply<Real>(gradients + f * gradients_, patches + f * patches_ + column,
                                   sum + f * sums_ + column, outputs, last - first, columns_ - column, distances,
                                   first > start, wanted);
        }
    }

    // Add up the chunks for one output channel, transform back, and round.
    void add(const Real* sums, std::int64_t output) const {
        for (std::int64_t input = 0; input < job_.inputs; input += kWide<Real>) {
            const Real* from = sums + output * columns_ + input;
            const auto total = [=, this](int i, int j) CDN_INLINE {
                const Real* place = from + (i * (tile + 2) + j) * sums_;
                Wide<Real> sum = read<Wide<Real>>(place);
                for (std::int64_t chunk = 1; chunk < chunks_; ++chunk)
                    sum += read<Wide<Real>>(place + chunk * kFrequencies * sums_);
                return sum;
            };
            finish(total, output, input);
        }
    }

private:
    void transform_tiles(Real* patches, Real* gradients, std::int64_t first, std::int64_t last, std::int64_t output,
                         std::int64_t outputs) const {
        for (std::int64_t t = first; t < last; ++t) {
            const Tile at = tiles_[t];
            for (std::int64_t channel = 0; channel < job_.inputs; channel += kWide<Real>) {
                const Spectrum to{patches + (t - first) * columns_ + channel, patches_};
                tiles_.template patch<Storage, tile + 2>(
                    job_.first, at, 1, job_.inputs, channel,
                    [=](auto read) CDN_INLINE { transform<Real, OfData<Real, tile>>(read, to); });
            }
            for (std::int64_t channel = 0; channel < outputs; channel += kWide<Real>) {
                const Spectrum to{gradients + (t - first) * rows_ + channel, gradients_};
                tiles_.template patch<Storage, tile>(
                    job_.second, at, 0, job_.outputs, output + channel,
                    [=](auto read) CDN_INLINE { transform<Real, OfGradient<Real, tile>>(read, to); });
            }
        }
    }

    // Multiply all tiles there are, a square of channels at a time, whose sums stay near.
    void multiply_whole(const Real* patches, const Real* gradients, Real* sums, std::int64_t output,
                        std::int64_t outputs) const {
        const Distances distances{1, rows_, columns_, kSquare};
        Wanted nothing;
        for (std::int64_t row = 0; row < outputs; row += kSquare)
            for (std::int64_t column = 0; column < columns_; column += kSquare) {
                const std::int64_t rows = std::min(kSquare, outputs - row);
                const std::int64_t columns = std::min(kSquare, columns_ - column);
                for (int f = 0; f < kFrequencies; ++f)
                    for (std::int64_t c = 0; c < columns; c += kPanel<Real>)
                        multiply<Real>(gradients + f * gradients_ + row, patches + f * patches_ + column + c,
                                       sums + f * sums_ + c, rows, tiles_.count(), columns - c, distances, false,
                                       nothing);
                const std::int64_t end = std::min(column + kSquare, job_.inputs);
                for (std::int64_t o = 0; o < rows; ++o)
                    for (std::int64_t input = column; input < end; input += kWide<Real>)
                        finish(Spectrum{sums + o * kSquare + input - column, sums_}, output + row + o, input);
            }
    }

    // Transform a vector of sums, which total(i, j) gives, back to the filters of an output channel, and round.
    template <typename Total>
    void finish(Total total, std::int64_t output, std::int64_t input) const {
        auto* out = static_cast<Element*>(job_.out) + output * kTaps * kTaps * job_.inputs + input;
        transform<Real, ToFilter<Real, tile>>(total, [=, this](int i, int j, Wide<Real> v) CDN_INLINE {
            store<Storage>(out + (i * kTaps + j) * job_.inputs, v, job_.inputs - input);
        });
    }

    const ConvolutionJob& job_;
    const Tiles<tile> tiles_;
    std::int64_t columns_, rows_;  // input channels, and output channels of a range, in whole vectors
    std::int64_t chunks_, chunk_, parts_, part_;  // how many, and tiles or output channels of one
    std::int64_t block_, patches_, gradients_, sums_;
    bool whole_;  // whether all tiles are one block, so that nothing is summed up
};

// Minimal filtering takes filters of 3x3 with stride 1, of any type.
static bool takes(const ConvolutionJob& job) { return job.size == kTaps && job.stride == 1; }

// Whether tiles of 8x8 run a job of 16 bits, which take 0.69 of the products where the image has as many whole ones,
// and have more filters to transform.
static bool has_large_tiles(const ConvolutionJob& job) {
    const auto tiles = [&](std::int64_t side) { return divide_up(job.height, side) * divide_up(job.width, side); };
    const std::int64_t fewest = job.kind == CDN_CONV_WEIGHT ? 32 : 64;
    return 5 * 100 * tiles(8) <= 4 * 36 * tiles(4) && job.batch * tiles(8) >= fewest;
}

// Call f with the storage type and the side of the tiles, as a constant, of a job.
template <typename F>
static void with_tiles(const ConvolutionJob& job, F f) {
    with_storage(job.type, [&](auto storage) {
        if constexpr (decltype(storage)::brief)
            if (has_large_tiles(job)) return f(storage, std::integral_constant<int, 8>{});
        f(storage, std::integral_constant<int, 4>{});
    });
}

static ConvolutionPlan plan(const ConvolutionJob& job, int threads) {
    ConvolutionPlan plan{};
    with_tiles(job, [&](auto storage, auto tile) {
        using Storage = decltype(storage);
        plan = job.kind == CDN_CONV_WEIGHT ? WinogradWeight<Storage, tile>(job, threads).plan()
                                           : WinogradImage<Storage, tile>(job, threads).plan();
    });
    return plan;
}

static void run(const ConvolutionJob& job, int threads, int stage, void* shared, void* scratch, std::int64_t first,
                std::int64_t last) {
    with_tiles(job, [&](auto storage, auto tile) {
        using Storage = decltype(storage);
        using Real = typename Storage::Real;
        auto *common = static_cast<Real*>(shared), *own = static_cast<Real*>(scratch);
        if (job.kind == CDN_CONV_WEIGHT) {
            const WinogradWeight<Storage, tile> weight(job, threads);
            for (std::int64_t unit = first; unit < last; ++unit)
                stage == 1 ? weight.multiply_chunk(common, own, unit) : weight.add(common, unit);
        } else {
            const WinogradImage<Storage, tile> image(job, threads);
            for (std::int64_t unit = first; unit < last; ++unit)
                stage == 0 ? image.pack_shared(common, unit) : image.multiply_tiles(common, own, unit);
        }
    });
}

}  // namespace

extern const ConvolutionKernels winograd{1 << 24, takes, plan, run};

}  // namespace cdn::CDN_VARIANT
