// Forward convolutions and gradients by the input: images of sums over taps, tile by tile.
//
// Samples are copied with their padding into a scratch of a few, so that a tap is a constant distance. The rows of a
// tile are neighbours in a row of the output, or in the rows of a few samples that lie interleaved where rows are
// short; its columns are a block of output channels. Engines that sum over many pairs at once get the pairs in slices,
// each an image of its own: what the taps of a slice read stays in the first-level cache, and filters are read in the
// order in which they lie. The gradient by the input of a strided convolution falls into phases, one for each residue
// of the place modulo the stride, each a convolution of its own with the taps that meet it.
#pragma once

#include <algorithm>
#include <cstring>

#include "ahead.h"
#include "convolution.h"
#include "convolution_product.h"
#include "pack.h"

namespace cdn::CDN_VARIANT {
namespace {

constexpr std::int64_t kScratch = 384 << 10;  // bytes of packed samples that stay in the second-level cache
constexpr std::int64_t kLargeScratch = 1280 << 10;  // where filters do not, and are read once for every scratch

template <typename Engine>
class ImageConvolution {
    using Storage = typename Engine::Storage;
    using Element = typename Storage::Element;
    static constexpr std::int64_t kColumns = Engine::kColumns;
    static constexpr std::int64_t kValues = sizeof(Pair) / sizeof(Element);  // of a word
    static constexpr std::int64_t kGroup = 16;  // pairs that are packed together

public:
    ImageConvolution(const ConvolutionJob& job, int threads) : job_(job) {
        if (job.kind == CDN_CONV_INPUT) {
            in_height_ = job.out_height(), in_width_ = job.out_width(), in_channels_ = job.outputs;
            out_height_ = job.height, out_width_ = job.width, out_channels_ = job.inputs;
        }
        const std::int64_t pairs = round_up(divide_up(in_channels_, kValues), Engine::kPairs);
        slice_ = Engine::kPairs > 1 ? Engine::kPairs : pairs;
        slices_ = pairs / slice_;
        padded_height_ = in_height_ + 2 * job.padding();
        residue_ = divide_up(in_width_ + 2 * job.padding(), in_steps());
        blocks_ = divide_up(out_channels_, kColumns);
        panel_ = job.taps() * pairs * kColumns;
        const std::int64_t sample = padded_height_ * residue_ * in_steps() * pairs * std::int64_t{sizeof(Pair)};
        together_ = fewest_wasted(sample);
        const std::int64_t filters = blocks_ * panel_ * std::int64_t{sizeof(Pair)};
        const std::int64_t room = filters > kLargeScratch ? kLargeScratch : kScratch;
        const std::int64_t most = std::max(together_, room / sample / together_ * together_);
        // The same number of groups for every thread.
        const std::int64_t groups = round_up(divide_up(job.batch, most), threads);
        group_ = round_up(divide_up(job.batch, groups), together_);
        groups_ = divide_up(job.batch, group_);
        // Where samples do not divide, as they are interleaved or few, threads share output channels instead.
        const std::int64_t busiest = divide_up(groups_, threads) * group_ * threads;
        share_ = 4 * busiest > 5 * job.batch ? divide_up(blocks_, threads) : blocks_;
        // Engines load whole tiles, also where a row ends sooner.
        scratch_ = group_ * sample + Engine::kRows * slice_ * std::int64_t{sizeof(Pair)};
    }

    ConvolutionPlan plan() const {
        const std::int64_t packs = job_.kind == CDN_CONV_FORWARD ? blocks_ : divide_up(slices_ * slice_, kGroup);
        return {packs, groups_ * divide_up(blocks_, share_), 0, blocks_ * panel_ * std::int64_t{sizeof(Pair)},
                scratch_};
    }

    // Write some filters that lie together where they belong in [block of output channels, slice, tap, pair of input
    // channels, output channel]: they are a block forward, and a few pairs of all blocks for gradients.
    void pack(Pair* panels, std::int64_t unit) const {
        const std::int64_t filter = job_.taps() * job_.inputs;
        const bool forward = job_.kind == CDN_CONV_FORWARD;
        const std::int64_t first = unit * (forward ? kColumns : kGroup * kValues);
        const std::int64_t count = std::min(forward ? kColumns : kGroup * kValues, job_.outputs - first);
        const Element* filters = static_cast<const Element*>(job_.second) + first * filter;
        // In the order in which they lie, they come at the rate of the memory.
        Ahead(filters, filters + count * filter, 1).fetch();
        const std::int64_t pairs = slices_ * slice_;
        if (forward)
            for (std::int64_t pair = 0; pair < pairs; pair += kGroup)
                pack_group(panels + unit * panel_, filters, pair, std::min(kGroup, pairs - pair), count,
                           std::min(kGroup * kValues, in_channels_ - pair * kValues));
        else
            for (std::int64_t block = 0; block < blocks_; ++block)
                pack_group(panels + block * panel_, filters + block * kColumns, unit * kGroup,
                           std::min(kGroup, pairs - unit * kGroup),
                           std::min(kColumns, out_channels_ - block * kColumns), count);
    }

    // What copies leave as it is: the padding, and channels that fill up a word or a slice.
    void prepare(Pair* scratch) const {
        const std::int64_t padding = job_.padding(), values = slice_ * kValues;
        for (std::int64_t plane = 0; plane < group_ / together_ * slices_; ++plane, scratch += slice_step()) {
            if ((plane % slices_ + 1) * values > in_channels_) {
                std::memset(scratch, 0, slice_step() * sizeof(Pair));
                continue;
            }
            std::memset(scratch, 0, padding * line_step() * sizeof(Pair));
            for (std::int64_t y = padding; y < padding + in_height_; ++y)
                for (std::int64_t x = 0; x < padding; ++x)
                    for (std::int64_t side : {x, padding + in_width_ + x})
                        std::memset(scratch + place(y, side), 0, together_ * slice_ * sizeof(Pair));
            std::memset(scratch + (padding + in_height_) * line_step(), 0, padding * line_step() * sizeof(Pair));
        }
    }

    void multiply(const Pair* panels, Pair* scratch, std::int64_t unit) const {
        const std::int64_t group = unit % groups_, start = group * group_;
        const Samples samples{start, std::min(group_, job_.batch - start)};
        const std::int64_t first = unit / groups_ * share_, last = std::min(first + share_, blocks_);
        copy(scratch, samples);
        Ahead ahead = next_samples(group, last - first);
        for (std::int64_t block = first; block < last; ++block)
            for (std::int64_t y = 0; y < steps(); ++y)
                for (std::int64_t x = 0; x < steps(); ++x) phase(panels, scratch, samples, ahead, block, y, x);
    }

private:
    struct Samples {
        std::int64_t start, count;
    };

    // Samples to interleave, so that tiles have few rows without use.
    std::int64_t fewest_wasted(std::int64_t sample) const {
        const std::int64_t row = divide_up(out_width_, steps());
        std::int64_t best = 1, least = 0;
        for (std::int64_t n = 1; n <= std::min<std::int64_t>(Engine::kRows, job_.batch); ++n) {
            const std::int64_t rows = round_up(n * row, Engine::kRows) * divide_up(job_.batch, n);
            if (n > 1 && (rows >= least || n * sample > kLargeScratch)) continue;
            best = n, least = rows;
        }
        return best;
    }

    // What will be copied next.
    Ahead next_samples(std::int64_t group, std::int64_t blocks) const {
        if (group + 1 >= groups_) return {};
        const std::int64_t start = (group + 1) * group_, count = std::min(group_, job_.batch - start);
        const std::int64_t sample = in_height_ * in_width_ * in_channels_;
        const Element* next = static_cast<const Element*>(job_.first) + start * sample;
        const std::int64_t tiles = blocks * divide_up(group_, together_) * out_height_ * steps()
            * divide_up(divide_up(out_width_, steps()) * together_, Engine::kRows);
        const std::int64_t steps_of_tile = Engine::kPairs > 1 ? slices_ * divide_up(job_.taps(), steps() * steps()) : 1;
        return {next, next + count * sample, tiles * steps_of_tile};
    }

    // Pack a few pairs, of so many columns and channels, for all taps. Forward, `from` are the columns, else the
    // channels.
    void pack_group(Pair* panel, const Element* from, std::int64_t pair, std::int64_t pairs, std::int64_t columns,
                    std::int64_t channels) const {
        const std::int64_t filter = job_.taps() * job_.inputs;
        for (std::int64_t tap = 0; tap < job_.taps(); ++tap) {
            Pair* to = panel + ((pair / slice_ * job_.taps() + tap) * slice_ + pair % slice_) * kColumns;
            if (columns < kColumns || channels < pairs * kValues) std::memset(to, 0, pairs * kColumns * sizeof(Pair));
            if (job_.kind == CDN_CONV_FORWARD)
                pack_filters(to, from + tap * job_.inputs + pair * kValues, filter, columns, channels);
            else pack_gradients(to, from + tap * job_.inputs, filter, columns, channels);
        }
    }

    // Columns are filters, in which pairs lie as they are wanted.
    static void pack_filters(Pair* to, const Element* from, std::int64_t filter, std::int64_t columns,
                             std::int64_t channels) {
        if constexpr (Engine::kRowsOfPairs)
            if (columns == kColumns && channels == kGroup * kValues) return Engine::transpose(from, filter, to);
        for (std::int64_t pair = 0; pair < channels / kValues; ++pair)
            for (std::int64_t column = 0; column < columns; ++column)
                std::memcpy(to + pair * kColumns + column, from + column * filter + kValues * pair, sizeof(Pair));
        if (channels % kValues)
            for (std::int64_t column = 0; column < columns; ++column)
                to[channels / kValues * kColumns + column] = word(from[column * filter + channels - 1]);
    }

    // Columns are the channels of filters, and pairs are made of two filters.
    static void pack_gradients(Pair* to, const Element* from, std::int64_t filter, std::int64_t columns,
                               std::int64_t channels) {
        for (std::int64_t channel = 0; channel < channels; channel += kValues) {
            const bool both = kValues > 1 && channel + 1 < channels;
            if (both && columns == kColumns)  // of fixed length, to be unrolled
                for (std::int64_t column = 0; column < kColumns; ++column)
                    to[column] = word(from[column]) | word(from[filter + column]) << 16;
            else
                for (std::int64_t column = 0; column < columns; ++column)
                    to[column] = word(from[column]) | (both ? word(from[filter + column]) << 16 : 0);
            to += kColumns;
            from += kValues * filter;
        }
    }

    // The distance between neighbours of a phase, in the output and in the input.
    std::int64_t steps() const { return job_.kind == CDN_CONV_INPUT ? job_.stride : 1; }
    std::int64_t in_steps() const { return job_.kind == CDN_CONV_INPUT ? 1 : job_.stride; }

    // The scratch holds [sample / together, slice, y, x modulo the steps, x / steps, sample modulo together, pair].
    std::int64_t line_step() const { return residue_ * in_steps() * together_ * slice_; }
    std::int64_t slice_step() const { return padded_height_ * line_step(); }
    std::int64_t part_step() const { return slices_ * slice_step(); }
    std::int64_t place(std::int64_t y, std::int64_t x) const {
        return y * line_step() + (x % in_steps() * residue_ + x / in_steps()) * together_ * slice_;
    }

    void copy(Pair* scratch, Samples samples) const {
        const std::int64_t padding = job_.padding(), values = slice_ * kValues;
        const bool rows = values == in_channels_ && together_ == 1 && in_steps() == 1;  // lie in one piece
        for (std::int64_t n = 0; n < samples.count; ++n) {
            Pair* part = scratch + n / together_ * part_step() + n % together_ * slice_;
            for (std::int64_t y = 0; y < in_height_; ++y) {
                const std::int64_t line = ((samples.start + n) * in_height_ + y) * in_width_;
                const Element* row = static_cast<const Element*>(job_.first) + line * in_channels_;
                if (rows) std::memcpy(part + place(y + padding, padding), row, in_width_ * values * sizeof(Element));
                else
                    for (std::int64_t slice = 0; slice < slices_; ++slice)
                        for (std::int64_t residue = 0; residue < in_steps(); ++residue) {
                            const std::int64_t first = round_up(padding - residue, in_steps()) + residue - padding;
                            const std::int64_t channels = std::min(values, in_channels_ - slice * values);
                            Pair* to = part + slice * slice_step() + place(y + padding, first + padding);
                            for (std::int64_t x = first; x < in_width_; x += in_steps(), to += together_ * slice_)
                                copy_channels(to, row + x * in_channels_ + slice * values, channels);
                        }
            }
        }
    }

    static void copy_channels(Pair* to, const Element* from, std::int64_t channels) {
        constexpr std::int64_t whole = Engine::kPairs * kValues;  // of a length that compilers know
        if (whole > kValues && channels == whole) std::memcpy(to, from, whole * sizeof(Element));
        else std::memcpy(to, from, channels * sizeof(Element));
    }

    // The outputs at (y, x) modulo the steps.
    void phase(const Pair* panels, const Pair* scratch, Samples samples, Ahead& ahead, std::int64_t block,
               std::int64_t first_y, std::int64_t first_x) const {
        Stretch stretches[kLargestFilter * kLargestFilter];
        const std::int64_t taps = list_taps(stretches, first_y, first_x), step = steps();
        alignas(64) float tiles[2][Engine::kRows * kColumns] = {};
        TileProduct product{nullptr, panels + block * panel_, stretches, taps, slice_, slice_, 1, kColumns, 0, 0};
        product.slices = slices_, product.a_slice = slice_step(), product.b_slice = job_.taps() * slice_ * kColumns;
        product.columns = static_cast<int>(std::min(kColumns, out_channels_ - block * kColumns));
        const std::int64_t rows = divide_up(out_height_ - first_y, step), row = divide_up(out_width_ - first_x, step);
        Finished finished{};
        finished.columns = product.columns;
        int current = 0;
        for (std::int64_t n = 0; n < samples.count; n += together_)
            for (std::int64_t y = 0; y < rows; ++y) {
                product.a = scratch + n / together_ * part_step() + y * in_steps() * line_step();
                const std::int64_t line = ((samples.start + n) * out_height_ + first_y + y * step) * out_width_;
                for (std::int64_t left = row * together_; left > 0; left -= Engine::kRows) {
                    product.tile = tiles[current];
                    product.rows = static_cast<int>(std::min<std::int64_t>(Engine::kRows, left));
                    if (taps) Engine::multiply(product, [&] { ahead.fetch(), finish(finished, 2); });
                    finish(finished, Engine::kRows);
                    // It has come to where this tile begins, unless that is in another line.
                    finished.tile = product.tile, finished.rows = product.rows;
                    if (left == row * together_) {
                        finished.place = (line + first_x) * out_channels_ + block * kColumns, finished.n = 0;
                        finished.samples = std::min(together_, samples.count - n);
                    }
                    product.a += Engine::kRows * slice_;
                    current = 1 - current;
                }
            }
        finish(finished, Engine::kRows);
    }

    // The taps that meet the outputs at (y, x) modulo the steps.
    std::int64_t list_taps(Stretch* stretches, std::int64_t first_y, std::int64_t first_x) const {
        std::int64_t taps = 0;
        const std::int64_t padding = job_.padding(), step = steps();
        for (std::int64_t ky = 0; ky < job_.size; ++ky)
            for (std::int64_t kx = 0; kx < job_.size; ++kx) {
                std::int64_t y = ky, x = kx;
                if (job_.kind == CDN_CONV_INPUT) {
                    y = first_y + padding - ky, x = first_x + padding - kx;
                    if (y % step != 0 || x % step != 0) continue;
                    y = y / step + padding, x = x / step + padding;
                }
                stretches[taps++] = {place(y, x), (ky * job_.size + kx) * slice_ * kColumns};
            }
        return taps;
    }

    // A tile of which some rows are still to be written, while the next one is computed.
    struct Finished {
        const float* tile;
        int rows, columns;
        std::int64_t place, n;  // of the next row: in the output, and among the samples that lie interleaved
        std::int64_t samples;   // of these that are there
    };

    // Round and write a number of rows, two by two.
    void finish(Finished& tile, int rows) const {
        for (; rows > 0 && tile.rows > 0; rows -= 2) {
            alignas(64) Element pre_activations[2 * kColumns], activations[2 * kColumns];
            for (int i = 0; i < 2; ++i) Engine::round(tile.tile + i * kColumns, pre_activations + i * kColumns);
            if (job_.activation) {
                // Of the rounded numbers: the derivatives will be those at the pre-activation that is kept.
                alignas(64) float values[2 * kColumns];
                activate<2 * kColumns>(pre_activations, values);
                for (int i = 0; i < 2; ++i) Engine::round(values + i * kColumns, activations + i * kColumns);
            }
            for (int i = 0; i < 2 && tile.rows > 0; ++i) {
                if (tile.n < tile.samples) {
                    if (job_.out) put(job_.out, pre_activations + i * kColumns, tile);
                    if (job_.activation) put(job_.activation, activations + i * kColumns, tile);
                }
                advance(tile);
            }
        }
    }

    void advance(Finished& tile) const {
        const std::int64_t sample = out_height_ * out_width_ * out_channels_;
        tile.tile += kColumns, --tile.rows, tile.place += sample;
        if (++tile.n == together_) tile.n = 0, tile.place += steps() * out_channels_ - together_ * sample;
    }

    static void put(void* image, const Element* row, const Finished& tile) {
        Element* to = static_cast<Element*>(image) + tile.place;
        if (tile.columns == kColumns) std::memcpy(to, row, kColumns * sizeof(Element));
        else std::memcpy(to, row, tile.columns * sizeof(Element));
    }

    template <std::int64_t count>
    static void activate(const Element* from, float* to) {
        constexpr std::int64_t pack = kParts * kLanes;
        if constexpr (Vectors<Storage>::exists && count % pack == 0) {
            for (std::int64_t done = 0; done < count; done += pack) {
                Pack u;
                CDN_EACH_PART u.part[i] = Vectors<Storage>::load(from + done + i * kLanes);
                u = gelu<Storage::brief>(u).value;
                CDN_EACH_PART write(to + done + i * kLanes, u.part[i]);
            }
        } else {
            for (std::int64_t i = 0; i < count; ++i) to[i] = gelu<Storage::brief>(Storage::load(from[i])).value;
        }
    }

    const ConvolutionJob& job_;
    std::int64_t in_height_ = job_.height, in_width_ = job_.width, in_channels_ = job_.inputs;
    std::int64_t out_height_ = job_.out_height(), out_width_ = job_.out_width(), out_channels_ = job_.outputs;
    std::int64_t slice_, slices_;  // pairs that lie together, and how many times so many
    std::int64_t padded_height_, residue_, blocks_, panel_, group_, groups_, scratch_;
    std::int64_t together_;  // samples that lie interleaved
    std::int64_t share_;  // blocks of output channels of a unit
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
