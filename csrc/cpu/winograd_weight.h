// The gradient of a convolution by its filters with minimal filtering.
//
// Transformed patches and transformed gradients are multiplied and summed over all tiles frequency by frequency, and
// transformed back once. A unit is a range of output channels times a chunk of tiles. The order of summation depends on
// the chunks alone, which follow from the shape, not on the ranges, which employ the threads there are. Few tiles are
// transformed first, for all threads, and a unit is a square of channels, whose sums stay near.
#pragma once

#include "winograd_image.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Storage, typename Scheme>
class WinogradWeight {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    static constexpr int kPatch = Scheme::kPatch, kPhases = Scheme::kPhases;
    static constexpr std::int64_t kFrequencies = kPatch * kPatch, kSide = Scheme::kSide;
    static constexpr std::int64_t kMostChunks = 8, kChunkTiles = 128, kChunkBytes = 7 << 20;
    static constexpr std::int64_t kMostTiles = 16 * kRows;  // of a block
    static constexpr std::int64_t kStreamedBytes = 1 << 20;  // of filters from which on they are written past the cache
    static constexpr std::int64_t kSquare = 64 / (kVectors * kLanes) * kPanel<Real>;  // channels of sums that stay near

public:
    WinogradWeight(const ConvolutionJob& job, int threads) : job_(job), tiles_(job) {
        step_ = round_up(job.inputs, kWide<Real>);
        columns_ = kPhases * step_;
        const std::int64_t bytes = sizeof(Real), all = kFrequencies * job.outputs * columns_ * bytes;
        chunks_ = std::min({kMostChunks, tiles_.count() / kChunkTiles, kChunkBytes / all});
        while (chunks_ & (chunks_ - 1)) --chunks_;  // a power of two, as threads mostly are
        chunk_ = divide_up(tiles_.count(), std::max<std::int64_t>(1, chunks_));
        chunks_ = divide_up(tiles_.count(), chunk_);
        whole_ = chunks_ == 1 && chunk_ <= tiles_of_block(job.outputs);
        const std::int64_t wanted = whole_ ? 1 : divide_up(threads, chunks_);
        part_ = std::min(job.outputs, round_up(divide_up(job.outputs, wanted), kPanel<Real>));
        parts_ = divide_up(job.outputs, part_);
        rows_ = round_up(part_, kWide<Real>);
        block_ = whole_ ? chunk_ : tiles_of_block(rows_);
        inputs_wide_ = whole_ ? kSquare : columns_, outputs_wide_ = whole_ ? kSquare : rows_;
        patches_ = frequency_distance(block_ * round_up(columns_, inputs_wide_), bytes);
        gradients_ = frequency_distance(block_ * round_up(rows_, outputs_wide_), bytes);
        sums_ =
            whole_ ? frequency_distance(kSquare * kSquare, bytes) : frequency_distance(job.outputs * columns_, bytes);
    }

    ConvolutionPlan plan() const {
        const std::int64_t bytes = sizeof(Real), tiles = kFrequencies * (patches_ + gradients_) * bytes;
        const std::int64_t sums = kFrequencies * sums_ * bytes;
        if (whole_) return {block_, divide_up(job_.outputs, kSquare) * divide_up(columns_, kSquare), 0, tiles, sums};
        return {0, parts_ * chunks_, job_.outputs, chunks_ * sums, tiles};
    }

    // Transform a tile for all units.
    void pack_shared(Real* shared, std::int64_t unit) const {
        transform_tiles(shared + unit * inputs_wide_, shared + kFrequencies * patches_ + unit * outputs_wide_, unit,
                        unit + 1, 0, job_.outputs);
    }

    void multiply_unit(Real* shared, Real* scratch, std::int64_t unit) const {
        whole_ ? multiply_square(shared, scratch, unit) : multiply_chunk(shared, scratch, unit);
    }

    // Add up the chunks for one output channel, transform back, and round.
    void add(const Real* sums, std::int64_t output) const {
        each_vector(0, columns_, [&](auto phase, std::int64_t column, std::int64_t input) {
            const Real* from = sums + output * columns_ + column;
            finish<phase>(output, input, [=, this](int i, int j) CDN_INLINE {
                const Real* place = from + (i * kPatch + j) * sums_;
                Wide<Real> sum = read<Wide<Real>>(place);
                for (std::int64_t chunk = 1; chunk < chunks_; ++chunk)
                    sum += read<Wide<Real>>(place + chunk * kFrequencies * sums_);
                return sum;
            });
        });
        settle();
    }

private:
    // Transform a chunk of tiles and sum up its products for a range of outputs.
    void multiply_chunk(Real* sums, Real* scratch, std::int64_t unit) const {
        const std::int64_t part = unit % parts_, chunk = unit / parts_;
        const std::int64_t output = part * part_, outputs = std::min(part_, job_.outputs - output);
        const std::int64_t start = chunk * chunk_, end = std::min(start + chunk_, tiles_.count());
        Real *patches = scratch, *gradients = scratch + kFrequencies * patches_;
        const auto* images = static_cast<const Element*>(job_.first);
        const auto* results = static_cast<const Element*>(job_.second);
        Real* sum = sums + chunk * kFrequencies * sums_ + output * columns_;
        const Distances distances{1, rows_, columns_, columns_};
        const std::int64_t steps = kFrequencies * divide_up(columns_, kPanel<Real>) * divide_up(outputs, kRows);
        for (std::int64_t first = start; first < end; first += block_) {
            const std::int64_t last = std::min(first + block_, end);
            transform_tiles(patches, gradients, first, last, output, outputs);
            const std::int64_t next = std::min(last + block_, end);
            const auto [from, from_end] = tiles_.elements(images_, Scheme::kStep, last, next);
            const auto [by, by_end] = tiles_.elements(results_, 1, last, next);
            Wanted wanted;
            wanted.add(images + from, images + from_end, steps);
            wanted.add(results + by, results + by_end, steps);
            for (int f = 0; f < kFrequencies; ++f)
                for_panels(f, 0, columns_, [&](std::int64_t column) {
                    multiply<Real>(gradients + f * gradients_, patches + f * patches_ + column,
                                   sum + f * sums_ + column, outputs, last - first, columns_ - column, distances,
                                   first > start, wanted);
                });
        }
    }

    // Call f with the first of every panel of columns first .. last that has a frequency.
    template <typename F>
    void for_panels(int f, std::int64_t first, std::int64_t last, F use) const {
        const PhaseRange phases = Scheme::phases(f / kPatch, f % kPatch);
        const std::int64_t begin = phases.first * step_, end = (phases.first + phases.count) * step_;
        for (std::int64_t column = first; column < last; column += kPanel<Real>)
            if (column < end && column + kPanel<Real> > begin) use(column);
    }

    // Call use(phase, column, input) for every vector of columns first .. last, with its phase and first input channel.
    template <typename Use>
    void each_vector(std::int64_t first, std::int64_t last, Use use) const {
        for (std::int64_t column = first; column < last; column += kWide<Real>)
            with_phase<Scheme>(static_cast<int>(column / step_),
                               [&](auto phase) { use(phase, column, column - phase * step_); });
    }

    void transform_tiles(Real* patches, Real* gradients, std::int64_t first, std::int64_t last, std::int64_t output,
                         std::int64_t outputs) const {
        for (std::int64_t t = first; t < last; ++t) {
            const Tile at = tiles_[t];
            each_vector(0, columns_, [&](auto phase, std::int64_t column, std::int64_t input) {
                const Spectrum<Real, Scheme, phase> to{patches + place(t - first, column, inputs_wide_), patches_};
                read_patch<Storage, kPatch>(
                    job_.first, images_, tiles_.neighbours(at, Scheme::phase(phase)), input,
                    [=](auto read) CDN_INLINE { transform<Real, typename Scheme::template Data<Real>>(read, to); });
            });
            for (std::int64_t channel = 0; channel < outputs; channel += kWide<Real>) {
                const Spectrum<Real, Scheme> to{gradients + place(t - first, channel, outputs_wide_), gradients_};
                read_patch<Storage, Scheme::kTile>(
                    job_.second, results_, {at.sample, at.y, at.x, 1}, output + channel,
                    [=](auto read) CDN_INLINE { transform<Real, typename Scheme::template Gradient<Real>>(read, to); });
            }
        }
    }

    // Where a block has a channel of a tile: groups of channels follow each other, each with all tiles.
    std::int64_t place(std::int64_t tile, std::int64_t channel, std::int64_t wide) const {
        return (channel / wide * block_ + tile) * wide + channel % wide;
    }

    // Multiply all tiles there are for a square of channels, and transform back.
    void multiply_square(const Real* patches, Real* sums, std::int64_t unit) const {
        const Distances distances{1, kSquare, kSquare, kSquare};
        const std::int64_t across = divide_up(columns_, kSquare);
        const std::int64_t row = unit / across * kSquare, rows = std::min(kSquare, job_.outputs - row);
        const std::int64_t first = unit % across * kSquare, last = std::min(first + kSquare, columns_);
        const Real* by = patches + place(0, first, kSquare);
        const Real* gradients = patches + kFrequencies * patches_ + place(0, row, kSquare);
        for (int f = 0; f < kFrequencies; ++f) {
            Wanted wanted;
            if (last < columns_) {
                const Real* next = by + f * patches_ + block_ * kSquare;
                wanted.add(next, next + block_ * kSquare, divide_up(rows, kRows));
            }
            for_panels(f, first, last, [&](std::int64_t column) {
                multiply<Real>(gradients + f * gradients_, by + f * patches_ + column - first,
                               sums + f * sums_ + column - first, rows, block_, last - column, distances, false,
                               wanted);
            });
        }
        for (std::int64_t o = 0; o < rows; ++o)
            each_vector(first, last, [&](auto phase, std::int64_t column, std::int64_t input) {
                finish<phase>(row + o, input, Spectrum<Real, Scheme>{sums + o * kSquare + column - first, sums_});
            });
        settle();
    }

    // Tiles of so many outputs that are transformed before they are multiplied.
    std::int64_t tiles_of_block(std::int64_t outputs) const {
        const std::int64_t each = kFrequencies * (columns_ + outputs) * std::int64_t{sizeof(Real)};
        return std::clamp(kBlockBytes / each, kFewestTiles, kMostTiles);
    }

    // Whether the results are large, and whole lines.
    bool are_streamed() const {
        const std::int64_t row = job_.inputs * std::int64_t{sizeof(Element)};
        return row * kSide * kSide * job_.outputs >= kStreamedBytes && row % 64 == 0
            && reinterpret_cast<std::uintptr_t>(job_.out) % 64 == 0;
    }

    // Transform a vector of sums of a phase, which total(i, j) gives, back to the filters of an output channel, and
    // round.
    template <int number, typename Total>
    void finish(std::int64_t output, std::int64_t input, Total total) const {
        constexpr Phase phase = Scheme::phase(number);
        auto* out = static_cast<Element*>(job_.out) + output * kSide * kSide * job_.inputs + input;
        transform<Real, typename Scheme::template FilterGradient<Real>>(
            [=](int i, int j) CDN_INLINE { return Scheme::has(phase, i, j) ? total(i, j) : Wide<Real>{}; },
            [=, this](int i, int j, Wide<Real> v) CDN_INLINE {
                const int y = Scheme::tap(phase.odd_y, i), x = Scheme::tap(phase.odd_x, j);
                if (y < 0 || x < 0) return;
                auto* to = out + (y * kSide + x) * job_.inputs;
                if constexpr (kStreams<Storage>)
                    if (streamed_) return stream(to, v);
                store<Storage>(to, v, job_.inputs - input);
            });
    }

    const ConvolutionJob& job_;
    const Tiles<Scheme> tiles_;
    const Extent images_{job_.height, job_.width, job_.inputs};
    const Extent results_{job_.out_height(), job_.out_width(), job_.outputs};
    std::int64_t step_;  // from a phase to the next
    std::int64_t columns_, rows_;  // input channels, and output channels of a range, in whole vectors
    std::int64_t chunks_, chunk_, parts_, part_;  // how many, and tiles or output channels of one
    std::int64_t block_;  // tiles that are transformed before they are multiplied
    std::int64_t inputs_wide_, outputs_wide_;  // channels of a tile that follow each other, transformed
    std::int64_t patches_, gradients_, sums_;  // from a frequency to the next
    const bool streamed_ = are_streamed();
    bool whole_;  // whether all tiles are one block, so that nothing is summed up
};

// Minimal filtering takes filters of 3x3 with stride 1 or 2, and of 5x5 with stride 2, of any type.
static bool takes(const ConvolutionJob& job) {
    return job.size == 3 ? job.stride <= 2 : job.size == 5 && job.stride == 2;
}

// Whether tiles of 8x8 run a job of 16 bits, which take 0.69 of the products where the image has as many whole ones,
// and have more filters to transform.
static bool has_large_tiles(const ConvolutionJob& job) {
    const auto tiles = [&](std::int64_t side) { return divide_up(job.height, side) * divide_up(job.width, side); };
    const std::int64_t fewest = job.kind == CDN_CONV_WEIGHT ? 32 : 64;
    return 5 * 100 * tiles(8) <= 4 * 36 * tiles(4) && job.batch * tiles(8) >= fewest;
}

// Call f with the storage type and the scheme of a job.
template <typename F>
static void with_scheme(const ConvolutionJob& job, F f) {
    with_storage(job.type, [&](auto storage) {
        if (job.size == 5) return f(storage, Strided5{});
        if (job.stride == 2) return f(storage, Strided3{});
        if constexpr (decltype(storage)::brief)
            if (has_large_tiles(job)) return f(storage, Dense<8>{});
        f(storage, Dense<4>{});
    });
}

static ConvolutionPlan plan(const ConvolutionJob& job, int threads) {
    ConvolutionPlan plan{};
    with_scheme(job, [&](auto storage, auto scheme) {
        using Storage = decltype(storage);
        using Scheme = decltype(scheme);
        plan = job.kind == CDN_CONV_WEIGHT ? WinogradWeight<Storage, Scheme>(job, threads).plan()
                                           : WinogradImage<Storage, Scheme>(job, threads).plan();
    });
    return plan;
}

static void run(const ConvolutionJob& job, int threads, int stage, void* shared, void* scratch, std::int64_t first,
                std::int64_t last) {
    with_scheme(job, [&](auto storage, auto scheme) {
        using Storage = decltype(storage);
        using Scheme = decltype(scheme);
        using Real = typename Storage::Real;
        auto *common = static_cast<Real*>(shared), *own = static_cast<Real*>(scratch);
        if (job.kind == CDN_CONV_WEIGHT) {
            const WinogradWeight<Storage, Scheme> weight(job, threads);
            for (std::int64_t unit = first; unit < last; ++unit)
                stage == 0       ? weight.pack_shared(common, unit)
                    : stage == 1 ? weight.multiply_unit(common, own, unit)
                                 : weight.add(common, unit);
        } else {
            const WinogradImage<Storage, Scheme> image(job, threads);
            for (std::int64_t unit = first; unit < last; ++unit)
                stage == 0 ? image.pack_shared(common, unit) : image.multiply_tiles(common, own, unit);
        }
    });
}

}  // namespace

extern const ConvolutionKernels winograd{1 << 24, takes, plan, run};

}  // namespace cdn::CDN_VARIANT
