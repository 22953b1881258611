// The gradient of a convolution by its filters: sums over places and pairs of samples.
//
// Samples are taken in chunks of at most 32 and interleaved in pairs, so that a shift by a tap is a distance between
// places and never splits a pair. Where an engine sums over more pairs at once than a chunk has, neighbouring places of
// a row are summed over with them. A tile is a number of output channels times a block of input channels; it sums over
// a band of output rows that fits the second-level cache before it is added to the rest.
#pragma once

#include <algorithm>
#include <cstring>

#include "convolution_image.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Engine>
class WeightGradient {
    using Storage = typename Engine::Storage;
    using Element = typename Storage::Element;
    static constexpr std::int64_t kColumns = Engine::kColumns;
    static constexpr std::int64_t kValues = sizeof(Pair) / sizeof(Element);  // of a word
    static constexpr std::int64_t kMostSamples = 32;  // of a chunk, and where there are few units:
    static constexpr std::int64_t kFewestSamples = std::max<std::int64_t>(8, 2 * Engine::kPairs);
    static constexpr std::int64_t kUnits = 4;  // to employ threads, however many there are: sums must not depend on it
    static constexpr std::int64_t kPart = 2 * kColumns;  // input channels of a unit
    static constexpr std::int64_t kSomeParts = 4, kManyParts = 8;
    static constexpr std::int64_t kMostCommon = 8 << 20;  // bytes of a gradient that is packed once for all parts
    static constexpr std::int64_t kPlaces = 1024;  // of a band, unless a single row has more

public:
    WeightGradient(const ConvolutionJob& job, int threads) : job_(job) {
        part_ = std::min(kPart, round_up(job.inputs, kColumns));
        parts_ = divide_up(job.inputs, part_);
        while (chunk_ > kFewestSamples && parts_ * divide_up(job.batch, chunk_) < kUnits) chunk_ /= 2;
        const std::int64_t pairs = divide_up(std::min(job.batch, chunk_), kValues);
        while (job.stride == 1 && 2 * group_ * pairs <= Engine::kPairs && job.out_width() % (2 * group_) == 0)
            group_ *= 2;
        samples_ = round_up(group_ * pairs, Engine::kPairs) / group_;
        chunks_ = divide_up(job.batch, chunk_);
        // Few parts do not employ many threads, and their sums are small enough to keep one per chunk.
        separate_ = chunks_ > 1 && parts_ < kManyParts;
        sum_ = job.outputs * job.taps() * part_;
        // Threads beyond those share the output channels, which changes no sum.
        units_ = separate_ ? parts_ * chunks_ : parts_;
        outputs_ = round_up(divide_up(job.outputs, divide_up(threads, units_)), Engine::kRows);
        shares_ = divide_up(job.outputs, outputs_);
        padded_width_ = job.width + 2 * job.padding();
        // The gradient is packed once for many parts, if it is small: to read what was packed from far costs, too.
        const std::int64_t gradient_row = job.out_width() * round_up(job.outputs, Engine::kRows) * samples_;
        const std::int64_t whole = chunks_ * job.out_height() * gradient_row;
        common_ = parts_ >= kSomeParts && whole * std::int64_t{sizeof(Pair)} <= kMostCommon;
        packed_outputs_ = common_ ? round_up(job.outputs, Engine::kRows) : outputs_;
        packed_row_ = job.out_width() * packed_outputs_ * samples_;
        packed_ = common_ ? whole : 0;
        // The size of a band must not depend on the number of threads, or sums would.
        const std::int64_t image_row = padded_width_ * part_ * samples_;
        band_ = 1;
        const auto fits = [&](std::int64_t band) {
            const std::int64_t image = (band - 1) * job.stride + job.size;
            return (band * gradient_row + image * image_row) * std::int64_t{sizeof(Pair)} <= 2 * kScratch
                && band * job.out_width() <= kPlaces;
        };
        while (band_ < job.out_height() && fits(band_ + 1)) ++band_;
        window_ = (band_ - 1) * job.stride + job.size;
        gradient_ = common_ ? 0 : band_ * packed_row_;
        image_ = window_ * image_row;
    }

    ConvolutionPlan plan() const {
        const std::int64_t operands = (stretches() + gradient_ + image_) * std::int64_t{sizeof(Pair)};
        const std::int64_t sum = sum_ * std::int64_t{sizeof(float)}, packed = packed_ * std::int64_t{sizeof(Pair)};
        const std::int64_t packs = common_ ? chunks_ * job_.out_height() : 0;
        if (separate_) return {packs, units_ * shares_, job_.outputs, packed + units_ * sum, operands};
        return {packs, units_ * shares_, 0, packed, own_sum() * std::int64_t{sizeof(float)} + operands};
    }

    // Pack a row of the gradient of a chunk.
    void pack(void* shared, std::int64_t unit) const {
        const std::int64_t chunk = unit / job_.out_height(), y = unit % job_.out_height();
        pack_gradient(static_cast<Pair*>(shared) + unit * packed_row_, {0, job_.outputs}, chunk, y);
    }

    void multiply(void* shared, void* scratch, std::int64_t unit) const {
        const Range outputs{unit / units_ * outputs_, std::min((unit / units_ + 1) * outputs_, job_.outputs)};
        unit %= units_;
        const std::int64_t part = unit % parts_, chunk = unit / parts_;
        const auto* packed = static_cast<const Pair*>(shared);
        if (separate_) return add_chunk(sums(shared) + unit * sum_, packed, scratch, outputs, part, chunk, true);
        // The sum of a part is rounded while it is near.
        float* sum = static_cast<float*>(scratch);
        for (std::int64_t c = 0; c < chunks_; ++c) add_chunk(sum, packed, sum + own_sum(), outputs, part, c, c == 0);
        for (std::int64_t output = outputs.first; output < outputs.last; ++output) round(sum, 1, output, part);
    }

    // Add up the chunks for one output channel, and round.
    void add(void* shared, std::int64_t output) const {
        for (std::int64_t part = 0; part < parts_; ++part) round(sums(shared) + part * sum_, chunks_, output, part);
    }

private:
    // What threads share: the packed gradient, then the sums of chunks.
    float* sums(void* shared) const { return static_cast<float*>(shared) + packed_; }

    // Add up the sums of chunks for an output channel and a part of the inputs, and round.
    void round(const float* sums, std::int64_t chunks, std::int64_t output, std::int64_t part) const {
        const std::int64_t channels = std::min(part_, job_.inputs - part * part_);
        for (std::int64_t tap = 0; tap < job_.taps(); ++tap) {
            const std::int64_t row = output * job_.taps() + tap;
            const float* from = sums + row * part_;
            Element* to = static_cast<Element*>(job_.out) + row * job_.inputs + part * part_;
            for (std::int64_t i = 0; i < channels; i += kColumns) {
                const std::int64_t columns = std::min(kColumns, channels - i);
                if (chunks == 1 && columns == kColumns) {
                    Engine::round(from + i, to + i);
                    continue;
                }
                alignas(64) float total[kColumns] = {};
                alignas(64) Element rounded[kColumns];
                for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
                    for (std::int64_t k = 0; k < columns; ++k) total[k] += from[chunk * parts_ * sum_ + i + k];
                Engine::round(total, rounded);
                std::copy_n(rounded, columns, to + i);
            }
        }
    }

    // The room for the sum of a part in the scratch, in floats; what follows is aligned to 64 bytes.
    std::int64_t own_sum() const { return round_up(sum_, 16); }

    // The room for the stretches of a band, in pairs; what follows is aligned to 64 bytes.
    std::int64_t stretches() const {
        return round_up(band_ * job_.out_width() * std::int64_t{sizeof(Stretch)}, 64) / std::int64_t{sizeof(Pair)};
    }

    // Output channels, those of a unit.
    struct Range {
        std::int64_t first, last;
    };

    // Add the sum over a chunk to another, or begin a new one.
    void add_chunk(float* sum, const Pair* packed, void* scratch, Range outputs, std::int64_t part, std::int64_t chunk,
                   bool begin) const {
        Stretch* places = static_cast<Stretch*>(scratch);
        Pair* gradient = static_cast<Pair*>(scratch) + stretches();
        Pair* image = gradient + gradient_;
        std::int64_t rows = 0;  // of the image that are packed, which lie in a ring
        for (std::int64_t first = 0; first < job_.out_height(); first += band_) {
            const std::int64_t last = std::min(first + band_, job_.out_height());
            for (std::int64_t y = first; !common_ && y < last; ++y)
                pack_gradient(gradient + (y - first) * packed_row_, outputs, chunk, y);
            const std::int64_t needed = (last - 1) * job_.stride + job_.size - job_.padding();
            for (; rows < std::min(needed, job_.height); ++rows) pack_image(image, chunk, part, rows);
            const Pair* band = gradient;
            if (common_)
                band = packed + (chunk * job_.out_height() + first) * packed_row_ + outputs.first * group_ * samples_;
            for (std::int64_t ky = 0; ky < job_.size; ++ky)
                for (std::int64_t kx = 0; kx < job_.size; ++kx)
                    add_tap(sum, places, band, image, outputs, part, first, last, ky, kx, begin && first == 0);
        }
    }

    // [group of places, tile of outputs, place and pair, output in the tile], or [group of places, output, place and
    // pair] if the engine wants rows of pairs.
    void pack_gradient(Pair* to, Range outputs, std::int64_t chunk, std::int64_t y) const {
        constexpr std::int64_t tile = Engine::kRows;
        const std::int64_t width = job_.out_width();
        for (std::int64_t x = 0; x < width; x += group_)
            for (std::int64_t output = outputs.first; output < outputs.last; output += tile) {
                Pair* lines = to + (x * packed_outputs_ + (output - outputs.first) * group_) * samples_;
                if constexpr (Engine::kRowsOfPairs) {
                    alignas(64) Pair columns[Engine::kPairs * tile];
                    pack_lines(columns, outputs, chunk, y * width + x, output);
                    Engine::transpose(columns, lines);
                } else {
                    pack_lines(lines, outputs, chunk, y * width + x, output);
                }
            }
    }

    // [place and pair, output] of a tile of outputs, and of a group of places.
    void pack_lines(Pair* to, Range outputs, std::int64_t chunk, std::int64_t place, std::int64_t output) const {
        constexpr std::int64_t tile = Engine::kRows;
        const std::int64_t size = job_.out_height() * job_.out_width() * job_.outputs;
        for (std::int64_t i = 0; i < group_; ++i)
            for (std::int64_t pair = 0; pair < samples_; ++pair, to += tile)
                interleave<tile>(to, samples(job_.second, size, chunk * chunk_ + kValues * pair),
                                 (place + i) * job_.outputs + output, std::min(tile, outputs.last - output));
    }

    // [row in the ring, padded column, pair, input]
    void pack_image(Pair* to, std::int64_t chunk, std::int64_t part, std::int64_t y) const {
        const std::int64_t padding = job_.padding(), width = job_.width, inputs = job_.inputs;
        Pair* row = to + y % window_ * padded_width_ * samples_ * part_;
        for (std::int64_t x = 0; x < padded_width_; ++x) {
            Pair* place = row + x * samples_ * part_;
            if (x < padding || x >= padding + width) {
                std::memset(place, 0, samples_ * part_ * sizeof(Pair));
                continue;
            }
            const std::int64_t first = (y * width + x - padding) * inputs + part * part_;
            for (std::int64_t pair = 0; pair < samples_; ++pair) {
                const Samples from = samples(job_.first, job_.height * width * inputs, chunk * chunk_ + kValues * pair);
                for (std::int64_t i = 0; i < part_; i += kColumns)
                    interleave<kColumns>(place + pair * part_ + i, from, first + i, inputs - part * part_ - i);
            }
        }
    }

    // Two neighbouring samples of a pair, or one of a word; null where the batch has ended.
    struct Samples {
        const Element *even, *odd;
    };
    Samples samples(const void* tensor, std::int64_t size, std::int64_t first) const {
        const auto* samples = static_cast<const Element*>(tensor);
        return {first < job_.batch ? samples + first * size : nullptr,
                kValues > 1 && first + 1 < job_.batch ? samples + (first + 1) * size : nullptr};
    }

    // Write words of the values of samples, and zeros for samples and channels that are missing.
    template <std::int64_t count>
    static void interleave(Pair* to, Samples from, std::int64_t start, std::int64_t channels) {
        if (channels >= count && from.even && (kValues == 1 || from.odd)) {  // of fixed length, to be unrolled
            const Element *even = from.even + start, *odd = kValues > 1 ? from.odd + start : nullptr;
            for (std::int64_t i = 0; i < count; ++i) to[i] = word(even[i]) | (kValues > 1 ? word(odd[i]) << 16 : 0);
            return;
        }
        for (std::int64_t i = 0; i < count; ++i) {
            const bool here = i < channels;
            to[i] = (here && from.even ? word(from.even[start + i]) : 0)
                | (here && from.odd ? word(from.odd[start + i]) << 16 : 0);
        }
    }

    void add_tap(float* sum, Stretch* stretches, const Pair* gradient, const Pair* image, Range outputs,
                 std::int64_t part, std::int64_t first, std::int64_t last, std::int64_t ky, std::int64_t kx,
                 bool begin) const {
        std::int64_t count = 0;
        const std::int64_t width = job_.out_width();
        for (std::int64_t y = first; y < last; ++y) {
            const std::int64_t in_y = y * job_.stride + ky - job_.padding();
            if (in_y < 0 || in_y >= job_.height) continue;
            for (std::int64_t x = 0; x < width; x += group_) {
                const std::int64_t place = in_y % window_ * padded_width_ + x * job_.stride + kx;
                stretches[count++] = {((y - first) * width + x) * samples_ * packed_outputs_, place * samples_ * part_};
            }
        }
        if (count == 0 && !begin) return;
        alignas(64) float tiles[2][Engine::kRows * kColumns];
        const std::int64_t pairs = group_ * samples_;
        TileProduct product{gradient, image, stretches, count, pairs, 0, 0, part_, 0, 0};
        product.a_row = Engine::kRowsOfPairs ? pairs : 1;
        product.a_pair = Engine::kRowsOfPairs ? 1 : Engine::kRows;
        const std::int64_t channels = std::min(part_, job_.inputs - part * part_);
        Finished finished{};
        int current = 0;
        for (std::int64_t output = outputs.first; output < outputs.last; output += Engine::kRows) {
            product.a = gradient + (output - outputs.first) * pairs;
            product.rows = static_cast<int>(std::min<std::int64_t>(Engine::kRows, outputs.last - output));
            for (std::int64_t column = 0; column < channels; column += kColumns) {
                product.b = image + column;
                product.columns = static_cast<int>(std::min(kColumns, channels - column));
                product.tile = tiles[current];
                Engine::multiply(product, [&] { finish(finished, 2, begin); });
                finish(finished, Engine::kRows, begin);
                float* to = sum + (output * job_.taps() + ky * job_.size + kx) * part_ + column;
                finished = {product.tile, to, product.rows, product.columns};
                current = 1 - current;
            }
        }
        finish(finished, Engine::kRows, begin);
    }

    // A tile of which some rows are still to be added to the sum, while the next one is computed.
    struct Finished {
        const float* tile;
        float* to;
        int rows, columns;
    };

    void finish(Finished& tile, int rows, bool begin) const {
        for (; rows > 0 && tile.rows > 0; --rows, --tile.rows) {
            if (begin) std::memcpy(tile.to, tile.tile, tile.columns * sizeof(float));
            else if (tile.columns == kColumns)  // of fixed length, to be unrolled
                for (std::int64_t i = 0; i < kColumns; ++i) tile.to[i] += tile.tile[i];
            else
                for (std::int64_t i = 0; i < tile.columns; ++i) tile.to[i] += tile.tile[i];
            tile.tile += kColumns, tile.to += job_.taps() * part_;
        }
    }

    const ConvolutionJob& job_;
    std::int64_t chunk_ = kMostSamples;
    std::int64_t group_ = 1;  // places that are summed over together
    std::int64_t samples_;  // pairs of samples in a chunk
    std::int64_t units_, shares_, outputs_;  // units, if they have all outputs; shares of these, and the size of one
    std::int64_t part_, parts_, chunks_, sum_, padded_width_, band_, window_, gradient_, image_;
    std::int64_t packed_outputs_, packed_row_, packed_;
    bool common_;  // whether the gradient is packed once, for all parts
    bool separate_;  // whether every chunk has sums of its own, which are added up in the end
};

// The entry points of an engine.
template <typename Engine>
struct Convolution {
    static bool takes(const ConvolutionJob& job) {
        return job.type == Engine::kType && !job.u && !job.added && !job.product;
    }

    static ConvolutionPlan plan(const ConvolutionJob& job, int threads) {
        return job.kind == CDN_CONV_WEIGHT ? WeightGradient<Engine>(job, threads).plan()
                                           : ImageConvolution<Engine>(job, threads).plan();
    }

    static void run(const ConvolutionJob& job, int threads, int stage, void* shared, void* scratch, std::int64_t first,
                    std::int64_t last) {
        [[maybe_unused]] const typename Engine::Session session;
        if (job.kind == CDN_CONV_WEIGHT) {
            const WeightGradient<Engine> gradient(job, threads);
            for (std::int64_t unit = first; unit < last; ++unit)
                stage == 0       ? gradient.pack(shared, unit)
                    : stage == 1 ? gradient.multiply(shared, scratch, unit)
                                 : gradient.add(shared, unit);
        } else {
            const ImageConvolution<Engine> image(job, threads);
            if (stage == 1) image.prepare(static_cast<Pair*>(scratch));
            for (std::int64_t unit = first; unit < last; ++unit)
                stage == 0 ? image.pack(static_cast<Pair*>(shared), unit)
                           : image.multiply(static_cast<const Pair*>(shared), static_cast<Pair*>(scratch), unit);
        }
    }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
