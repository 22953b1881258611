// Forward convolutions and gradients by the input: images of sums over taps, tile by tile.
//
// Samples are copied with their padding into a scratch of a few, so that a tap is a constant distance. A tile is a
// number of neighbours in a row of the output, or of samples at one place where rows are short, times a block of
// output channels. The gradient by the input of a strided convolution falls into phases, one for each residue of the
// place modulo the stride, each a convolution of its own with the taps that meet it.
#pragma once

#include <algorithm>
#include <cstring>

#include "convolution.h"
#include "convolution_product.h"
#include "pack.h"

namespace cdn::CDN_VARIANT {
namespace {

constexpr std::int64_t kScratch = 384 << 10;  // bytes of packed samples that stay in the second-level cache

template <typename Engine>
class ImageConvolution {
    using Storage = typename Engine::Storage;
    using Element = typename Storage::Element;
    static constexpr std::int64_t kColumns = Engine::kColumns;
    static constexpr std::int64_t kValues = sizeof(Pair) / sizeof(Element);  // of a word

public:
    ImageConvolution(const ConvolutionJob& job, int threads) : job_(job) {
        if (job.kind == CDN_CONV_INPUT) {
            in_height_ = job.out_height(), in_width_ = job.out_width(), in_channels_ = job.outputs;
            out_height_ = job.height, out_width_ = job.width, out_channels_ = job.inputs;
        }
        pairs_ = round_up(divide_up(in_channels_, kValues), Engine::kPairs);
        padded_height_ = in_height_ + 2 * job.padding();
        padded_width_ = in_width_ + 2 * job.padding();
        blocks_ = divide_up(out_channels_, kColumns);
        panel_ = job.taps() * pairs_ * kColumns;
        // Neighbours fill a tile if a row is long; short rows would waste the difference, unless samples do not help.
        const std::int64_t row = divide_up(out_width_, steps());
        across_ = round_up(row, Engine::kRows) * job.batch > row * round_up(job.batch, Engine::kRows);
        const std::int64_t sample = padded_height_ * padded_width_ * pairs_ * sizeof(Pair);
        const std::int64_t least = across_ ? Engine::kRows : 1;
        const std::int64_t most = std::max(least, kScratch / sample / least * least);
        // The same number of groups for every thread.
        const std::int64_t groups = round_up(divide_up(job.batch, most), threads);
        group_ = round_up(divide_up(job.batch, groups), least);
        groups_ = divide_up(job.batch, group_);
        // Where samples do not divide, as tiles run across them or they are few, threads share output channels instead.
        const std::int64_t busiest = divide_up(groups_, threads) * group_ * threads;
        share_ = 4 * busiest > 5 * job.batch ? divide_up(blocks_, threads) : blocks_;
        // Engines load whole tiles, also where a row ends sooner.
        scratch_ = group_ * sample + Engine::kRows * in_steps() * place_step() * std::int64_t{sizeof(Pair)};
    }

    ConvolutionPlan plan() const {
        return {blocks_, groups_ * divide_up(blocks_, share_), 0, blocks_ * panel_ * std::int64_t{sizeof(Pair)},
                scratch_};
    }

    // Write the filters of a block of output channels as [tap, pair of input channels, output channel].
    void pack(Pair* panels, std::int64_t block) const {
        const std::int64_t start = block * kColumns, count = std::min(kColumns, out_channels_ - start);
        const std::int64_t filter = job_.taps() * job_.inputs;
        Pair* to = panels + block * panel_;
        if (count < kColumns || kValues * pairs_ > in_channels_) std::memset(to, 0, panel_ * sizeof(Pair));
        for (std::int64_t tap = 0; tap < job_.taps(); ++tap) {
            const Element* from = static_cast<const Element*>(job_.second) + tap * job_.inputs;
            Pair* tile = to + tap * pairs_ * kColumns;
            if (job_.kind == CDN_CONV_FORWARD) pack_filters(tile, from + start * filter, filter, count);
            else pack_gradients(tile, from + start, filter, count);
        }
    }

    void multiply(const Pair* panels, Pair* scratch, std::int64_t unit) const {
        const std::int64_t start = unit % groups_ * group_, count = std::min(group_, job_.batch - start);
        const std::int64_t first = unit / groups_ * share_, last = std::min(first + share_, blocks_);
        copy(scratch, start, count);
        for (std::int64_t block = first; block < last; ++block)
            for (std::int64_t y = 0; y < steps(); ++y)
                for (std::int64_t x = 0; x < steps(); ++x) phase(panels, scratch, start, count, block, y, x);
    }

private:
    // Columns are filters, in which pairs lie as they are wanted.
    void pack_filters(Pair* to, const Element* from, std::int64_t filter, std::int64_t count) const {
        for (std::int64_t pair = 0; pair < in_channels_ / kValues; ++pair)
            for (std::int64_t column = 0; column < count; ++column)
                std::memcpy(to + pair * kColumns + column, from + column * filter + kValues * pair, sizeof(Pair));
        if (in_channels_ % kValues)
            for (std::int64_t column = 0; column < count; ++column)
                to[in_channels_ / kValues * kColumns + column] = word(from[column * filter + in_channels_ - 1]);
    }

    // Columns are the channels of filters, and pairs are made of two filters.
    void pack_gradients(Pair* to, const Element* from, std::int64_t filter, std::int64_t count) const {
        for (std::int64_t channel = 0; channel < in_channels_; channel += kValues) {
            const bool both = kValues > 1 && channel + 1 < in_channels_;
            for (std::int64_t column = 0; column < count; ++column)
                to[column] = word(from[column]) | (both ? word(from[filter + column]) << 16 : 0);
            to += kColumns;
            from += kValues * filter;
        }
    }

    // The distance between neighbours of a phase, in the output and in the scratch.
    std::int64_t steps() const { return job_.kind == CDN_CONV_INPUT ? job_.stride : 1; }
    std::int64_t in_steps() const { return job_.kind == CDN_CONV_INPUT ? 1 : job_.stride; }

    // The scratch holds [y, x, sample, pair] if tiles run across samples, else [sample, y, x, pair].
    std::int64_t sample_step() const { return across_ ? pairs_ : padded_height_ * padded_width_ * pairs_; }
    std::int64_t place_step() const { return across_ ? group_ * pairs_ : pairs_; }

    void copy(Pair* scratch, std::int64_t start, std::int64_t count) const {
        const std::int64_t padding = job_.padding();
        const bool whole = kValues * place_step() == in_channels_;  // rows have no gaps
        for (std::int64_t n = 0; n < count; ++n)
            for (std::int64_t y = 0; y < padded_height_; ++y) {
                const bool inside = y >= padding && y < padding + in_height_;
                const std::int64_t line = (start + n) * in_height_ + y - padding;
                const Element* row = static_cast<const Element*>(job_.first) + line * in_width_ * in_channels_;
                Pair* to = scratch + n * sample_step() + y * padded_width_ * place_step();
                if (!inside || !whole) clear(to, padded_width_);
                if (!inside) continue;
                if (whole) {
                    clear(to, padding);
                    clear(to + (padding + in_width_) * place_step(), padding);
                    std::memcpy(to + padding * place_step(), row, in_width_ * in_channels_ * sizeof(Element));
                } else {
                    for (std::int64_t x = 0; x < in_width_; ++x)
                        std::memcpy(to + (padding + x) * place_step(), row + x * in_channels_,
                                    in_channels_ * sizeof(Element));
                }
            }
    }

    void clear(Pair* to, std::int64_t places) const {
        for (std::int64_t x = 0; x < places; ++x) std::memset(to + x * place_step(), 0, pairs_ * sizeof(Pair));
    }

    // The outputs at (y, x) modulo the steps.
    void phase(const Pair* panels, const Pair* scratch, std::int64_t start, std::int64_t count, std::int64_t block,
               std::int64_t first_y, std::int64_t first_x) const {
        Stretch stretches[kLargestFilter * kLargestFilter];
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
                const std::int64_t tap = ky * job_.size + kx;
                stretches[taps++] = {(y * padded_width_ + x) * place_step(), tap * pairs_ * kColumns};
            }
        alignas(64) float tile[Engine::kRows * kColumns] = {};
        TileProduct product{nullptr, panels + block * panel_, stretches, taps, pairs_, 0, 1, kColumns, 0, 0, tile};
        product.a_row = across_ ? sample_step() : in_steps() * place_step();
        const std::int64_t rows = divide_up(out_height_ - first_y, step), row = divide_up(out_width_ - first_x, step);
        const std::int64_t columns = std::min(kColumns, out_channels_ - block * kColumns);
        product.columns = static_cast<int>(columns);
        const std::int64_t along = across_ ? count : row;   // the length that tiles are cut from
        const std::int64_t others = across_ ? row : count;  // what is gone through one by one
        for (std::int64_t other = 0; other < others; ++other)
            for (std::int64_t y = 0; y < rows; ++y)
                for (std::int64_t first = 0; first < along; first += Engine::kRows) {
                    const std::int64_t n = across_ ? first : other, x = across_ ? other : first;
                    product.a = scratch + n * sample_step() + (y * padded_width_ + x) * in_steps() * place_step();
                    product.rows = static_cast<int>(std::min<std::int64_t>(Engine::kRows, along - first));
                    if (taps) Engine::multiply(product);
                    const std::int64_t place =
                        ((start + n) * out_height_ + first_y + y * step) * out_width_ + first_x + x * step;
                    const std::int64_t distance = across_ ? out_height_ * out_width_ : step;
                    store(tile, product.rows, columns, place * out_channels_ + block * kColumns,
                          distance * out_channels_);
                }
    }

    void store(const float* tile, int rows, std::int64_t columns, std::int64_t place, std::int64_t distance) const {
        alignas(64) Element rounded[Engine::kRows * kColumns];
        for (int row = 0; row < rows; ++row) Engine::round(tile + row * kColumns, rounded + row * kColumns);
        if (job_.out) put(job_.out, rounded, rows, columns, place, distance);
        if (!job_.activation) return;
        // Of the rounded numbers: the derivatives will be those at the pre-activation that is kept.
        alignas(64) float values[Engine::kRows * kColumns];
        activate(rounded, values, rows * kColumns);
        for (int row = 0; row < rows; ++row) Engine::round(values + row * kColumns, rounded + row * kColumns);
        put(job_.activation, rounded, rows, columns, place, distance);
    }

    static void put(void* image, const Element* rounded, int rows, std::int64_t columns, std::int64_t place,
                    std::int64_t distance) {
        for (int row = 0; row < rows; ++row)
            std::memcpy(static_cast<Element*>(image) + place + row * distance, rounded + row * kColumns,
                        columns * sizeof(Element));
    }

    static void activate(const Element* from, float* to, std::int64_t count) {
        std::int64_t done = 0;
        if constexpr (Vectors<Storage>::exists)
            for (; done + kParts * kLanes <= count; done += kParts * kLanes) {
                Pack u;
                CDN_EACH_PART u.part[i] = Vectors<Storage>::load(from + done + i * kLanes);
                u = gelu<Storage::brief>(u).value;
                CDN_EACH_PART write(to + done + i * kLanes, u.part[i]);
            }
        for (; done < count; ++done) to[done] = gelu<Storage::brief>(Storage::load(from[done])).value;
    }

    const ConvolutionJob& job_;
    std::int64_t in_height_ = job_.height, in_width_ = job_.width, in_channels_ = job_.inputs;
    std::int64_t out_height_ = job_.out_height(), out_width_ = job_.out_width(), out_channels_ = job_.outputs;
    std::int64_t pairs_, padded_height_, padded_width_, blocks_, panel_, group_, groups_, scratch_;
    std::int64_t share_;  // blocks of output channels of a unit
    bool across_;
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
