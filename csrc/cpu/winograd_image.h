// Forward convolutions and gradients by the input with minimal filtering.
//
// Filters are transformed first, for all threads. A unit is a block of tiles: its patches are transformed, multiplied
// by the filters frequency by frequency, and transformed back into results, on which the pass that follows is computed
// before they leave the registers. The products of a frequency take the place of the transformed patches of the one
// before, so that a block stays in the second-level cache.
#pragma once

#include <algorithm>
#include <utility>

#include "convolution.h"
#include "winograd_product.h"

namespace cdn::CDN_VARIANT {
namespace {

// A tile of results: its sample, its first row and column, and how many rows and columns lie in the image.
struct Tile {
    std::int64_t sample, y, x, rows, columns;
};

// The tiles of all samples of a side, in the order of their pixels.
template <int tile>
class Tiles {
    static constexpr std::int64_t kTile = tile;

public:
    explicit Tiles(const ConvolutionJob& job)
        : height_(job.height), width_(job.width), down_(divide_up(job.height, kTile)),
          across_(divide_up(job.width, kTile)), count_(job.batch * down_ * across_) {}

    std::int64_t count() const { return count_; }

    Tile operator[](std::int64_t number) const {
        const std::int64_t row = number / across_, y = row % down_ * kTile, x = number % across_ * kTile;
        return {row / down_, y, x, std::min(kTile, height_ - y), std::min(kTile, width_ - x)};
    }

    // The pixels of the rows that a range of tiles touches: first and end.
    std::pair<std::int64_t, std::int64_t> pixels(std::int64_t first, std::int64_t last) const {
        if (first >= last) return {0, 0};
        const Tile begin = (*this)[first], end = (*this)[last - 1];
        return {(begin.sample * height_ + begin.y) * width_, (end.sample * height_ + end.y + end.rows) * width_};
    }

    // Call use(read), where read(i, j) gives vectors of a patch that begins `before` pixels ahead of a tile; 0 is
    // outside.
    template <typename Storage, int size, typename Use>
    CDN_INLINE void patch(const void* image, const Tile& at, std::int64_t before, std::int64_t channels,
                          std::int64_t channel, Use use) const {
        using Real = typename Storage::Real;
        const std::int64_t first_y = at.y - before, first_x = at.x - before, count = channels - channel;
        const auto* corner = static_cast<const typename Storage::Element*>(image)
            + ((at.sample * height_ + first_y) * width_ + first_x) * channels + channel;
        const std::int64_t down = width_ * channels;
        const bool inside = first_y >= 0 && first_x >= 0 && first_y + size <= height_ && first_x + size <= width_;
        if (inside && count >= kWide<Real>)
            return use([=](int i, int j)
                           CDN_INLINE { return load<Storage>(corner + i * down + j * channels, kWide<Real>); });
        use([=, this](int i, int j) CDN_INLINE {
            const std::int64_t y = first_y + i, x = first_x + j;
            const bool here = y >= 0 && y < height_ && x >= 0 && x < width_;
            return here ? load<Storage>(corner + i * down + j * channels, count) : Wide<Real>{};
        });
    }

private:
    std::int64_t height_, width_, down_, across_, count_;
};

// Vectors of all frequencies, a fixed distance apart that is no multiple of a power of two: streams of writes would
// else meet in the same lines of the first-level cache.
static inline std::int64_t frequency_distance(std::int64_t elements, std::int64_t bytes) {
    const std::int64_t lines = divide_up(elements * bytes, 64);
    return (lines | 1) * 64 / bytes;
}

constexpr std::int64_t kBlockBytes = 640 << 10;  // of transformed patches, which should stay in the second-level cache
constexpr std::int64_t kFewestTiles = 11 * kRows;  // of a block: the filters are read once for each

template <typename Storage, int tile>
class WinogradImage {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    using Spectrum = Frequencies<Real, tile>;
    static constexpr std::int64_t kTile = tile, kFrequencies = (tile + 2) * (tile + 2);
    static constexpr std::int64_t kFilters = kWide<Real>;  // output channels whose filters are packed together

public:
    WinogradImage(const ConvolutionJob& job, int threads) : job_(job), tiles_(job) {
        const bool forward = job.kind == CDN_CONV_FORWARD;
        inner_ = forward ? job.inputs : job.outputs;
        outer_ = forward ? job.outputs : job.inputs;
        row_ = round_up(inner_, kWide<Real>);
        columns_ = round_up(outer_, kWide<Real>);
        panels_ = divide_up(columns_, kPanel<Real>);
        const std::int64_t widest = std::max(row_, columns_);
        const std::int64_t bytes = (kFrequencies + 1) * widest * std::int64_t{sizeof(Real)};
        const std::int64_t most = std::max(kFewestTiles, kBlockBytes / bytes / kRows * kRows);
        // The same number of blocks for every thread; where there are fewer, threads share the panels of one.
        std::int64_t blocks = divide_up(tiles_.count(), most);
        if (blocks >= threads) blocks = round_up(blocks, threads);
        blocks = std::max(blocks, divide_up(threads, panels_));
        block_ = divide_up(tiles_.count(), blocks);
        blocks_ = divide_up(tiles_.count(), block_);
        share_ = divide_up(panels_, std::min(panels_, divide_up(threads, blocks_)));
        distance_ = frequency_distance(block_ * widest, sizeof(Real));
        own_ = blocks_ == 1;
        filters_ = frequency_distance((own_ ? 1 : panels_) * inner_ * kPanel<Real>, sizeof(Real));
        products_ = own_ ? frequency_distance(block_ * kPanel<Real>, sizeof(Real)) : distance_;
    }

    ConvolutionPlan plan() const {
        const std::int64_t bytes = kFrequencies * std::int64_t{sizeof(Real)};
        const std::int64_t units = blocks_ * divide_up(panels_, share_);
        if (own_) return {0, units, 0, 0, (distance_ + filters_ + products_) * bytes};
        return {divide_up(outer_, kFilters), units, 0, filters_ * bytes, distance_ * (bytes + bytes / kFrequencies)};
    }

    void pack_shared(Real* filters, std::int64_t unit) const {
        const std::int64_t first = unit * kFilters;
        pack(filters + first / kPanel<Real> * inner_ * kPanel<Real> + first % kPanel<Real>, first);
    }

    // Compute the results of a block of tiles in a range of panels.
    void multiply_tiles(const Real* filters, Real* scratch, std::int64_t unit) const {
        const std::int64_t first = unit % blocks_ * block_, last = std::min(first + block_, tiles_.count());
        const std::int64_t start = unit / blocks_ * share_, end = std::min(start + share_, panels_);
        if (own_) return multiply_own(scratch, start, end);
        Real* patches = scratch + distance_;
        transform_tiles(patches, first, last);
        const Distances distances{row_, 1, kPanel<Real>, columns_};
        const std::int64_t steps = kFrequencies * (end - start) * divide_up(last - first, kRows);
        const auto [next, next_end] = tiles_.pixels(last, std::min(last + block_, tiles_.count()));
        const auto [own, own_end] = tiles_.pixels(first, last);
        const auto* images = static_cast<const Element*>(job_.first);
        Wanted wanted;
        wanted.add(images + next * inner_, images + next_end * inner_, steps);
        for (void* result : {job_.out, job_.activation, job_.product})
            if (auto* to = static_cast<Element*>(result)) wanted.add(to + own * outer_, to + own_end * outer_, steps);
        for (const void* operand : {job_.u, job_.added})
            if (const auto* from = static_cast<const Element*>(operand))
                wanted.add(from + own * outer_, from + own_end * outer_, steps);
        for (int f = 0; f < kFrequencies; ++f)
            for (std::int64_t panel = start; panel < end; ++panel)
                multiply<Real>(patches + f * distance_, filters + f * filters_ + panel * inner_ * kPanel<Real>,
                               scratch + f * distance_ + panel * kPanel<Real>, last - first, inner_,
                               columns_ - panel * kPanel<Real>, distances, false, wanted);
        finish_tiles(scratch, columns_, first, last, start * kPanel<Real>, end * kPanel<Real>);
    }

private:
    // The same where no other block needs the filters: they are transformed here, a panel at a time, and stay near.
    void multiply_own(Real* scratch, std::int64_t start, std::int64_t end) const {
        Real *filters = scratch + kFrequencies * distance_, *products = filters + kFrequencies * filters_;
        transform_tiles(scratch, 0, block_);
        const Distances distances{row_, 1, kPanel<Real>, kPanel<Real>};
        Wanted nothing;
        for (std::int64_t panel = start; panel < end; ++panel) {
            const std::int64_t first = panel * kPanel<Real>, last = first + kPanel<Real>;
            for (std::int64_t channel = first; channel < std::min(last, outer_); channel += kFilters)
                pack(filters + channel - first, channel);
            for (int f = 0; f < kFrequencies; ++f)
                multiply<Real>(scratch + f * distance_, filters + f * filters_, products + f * products_, block_,
                               inner_, columns_ - first, distances, false, nothing);
            finish_tiles(products - first, kPanel<Real>, 0, block_, first, last);
        }
    }

    void transform_tiles(Real* patches, std::int64_t first, std::int64_t last) const {
        for (std::int64_t t = first; t < last; ++t) {
            const Tile at = tiles_[t];
            for (std::int64_t channel = 0; channel < inner_; channel += kWide<Real>) {
                const Spectrum to{patches + (t - first) * row_ + channel, distance_};
                tiles_.template patch<Storage, tile + 2>(job_.first, at, 1, inner_, channel, [=](auto read) CDN_INLINE {
                    transform<Real, OfData<Real, tile>>(read, to);
                });
            }
        }
    }

    // Transform products [frequency, tile, row of channels] back, those of a range of channels.
    void finish_tiles(Real* products, std::int64_t row, std::int64_t first, std::int64_t last, std::int64_t channel,
                      std::int64_t end) const {
        for (std::int64_t t = first; t < last; ++t) {
            const Tile at = tiles_[t];
            // Up to which channel vectors are whole, of a tile that is.
            const std::int64_t whole = at.rows == kTile && at.columns == kTile ? outer_ - kWide<Real> : -1;
            for (std::int64_t c = channel; c < std::min(end, outer_); c += kWide<Real>) {
                const Spectrum from{products + (t - first) * row + c, products_};
                c <= whole ? finish<true>(from, at, c) : finish<false>(from, at, c);
            }
        }
    }

    // Transform the filters of a vector of output channels to [frequency, input channel, panel].
    void pack(Real* to, std::int64_t first) const {
        const std::int64_t count = std::min(kFilters, outer_ - first);
        const auto* from = static_cast<const Element*>(job_.second);
        constexpr std::int64_t kTogether = 16;
        Wide<Real> taps[kTogether][kTaps * kTaps];
        for (std::int64_t start = 0; start < inner_; start += kTogether) {
            const std::int64_t together = std::min(kTogether, inner_ - start);
            if (job_.kind == CDN_CONV_FORWARD) turn(from, first, count, start, together, taps);
            else rotate(from, first, count, start, together, taps);
            for (std::int64_t k = 0; k < together; ++k) {
                const Wide<Real>* filter = taps[k];
                transform<Real, OfFilter<Real, tile>>([=](int i, int j) CDN_INLINE { return filter[i * kTaps + j]; },
                                                      Spectrum{to + (start + k) * kPanel<Real>, filters_});
            }
        }
    }

    // Filters [output, tap, input]: the lanes of a vector are outputs.
    void turn(const Element* from, std::int64_t first, std::int64_t count, std::int64_t start, std::int64_t together,
              Wide<Real> (*taps)[kTaps * kTaps]) const {
        for (std::int64_t lane = 0; lane < kFilters; ++lane)
            for (int tap = 0; tap < kTaps * kTaps; ++tap) {
                const Element* row = from + ((first + lane) * kTaps * kTaps + tap) * inner_ + start;
                for (std::int64_t k = 0; k < together; ++k)
                    reinterpret_cast<Real*>(&taps[k][tap])[lane] = lane < count ? Storage::load(row[k]) : Real(0);
            }
    }

    // The gradient by the input is a convolution by filters turned by 180 degrees, whose inputs are the outputs.
    void rotate(const Element* from, std::int64_t first, std::int64_t count, std::int64_t start, std::int64_t together,
                Wide<Real> (*taps)[kTaps * kTaps]) const {
        for (std::int64_t k = 0; k < together; ++k)
            for (int tap = 0; tap < kTaps * kTaps; ++tap)
                taps[k][kTaps * kTaps - 1 - tap] =
                    load<Storage>(from + ((start + k) * kTaps * kTaps + tap) * outer_ + first, count);
    }

    // Transform products back to a tile of results, round them, and what follows them.
    template <bool whole>
    void finish(const Spectrum& products, const Tile& at, std::int64_t channel) const {
        const std::int64_t corner = ((at.sample * job_.height + at.y) * job_.width + at.x) * outer_ + channel;
        const std::int64_t count = whole ? kWide<Real> : std::min(outer_ - channel, kWide<Real>);
        const std::int64_t rows = whole ? kTile : at.rows, columns = whole ? kTile : at.columns;
        const std::int64_t down = job_.width * outer_, across = outer_;
        if (!job_.product && !job_.u && !job_.added && !job_.activation) {
            auto* out = static_cast<Element*>(job_.out) + corner;
            return transform<Real, ToData<Real, tile>>(products, [=](int i, int j, Wide<Real> v) CDN_INLINE {
                if (whole || (i < rows && j < columns)) store<Storage>(out + i * down + j * across, v, count);
            });
        }
        Wide<Real> results[kTile * kTile];
        transform<Real, ToData<Real, tile>>(products,
                                            [&](int i, int j, Wide<Real> v) CDN_INLINE { results[i * kTile + j] = v; });
        const auto each = [&](auto f) {
            for (std::int64_t i = 0; i < rows; ++i)
                for (std::int64_t j = 0; j < columns; ++j) f(results[i * kTile + j], corner + i * down + j * across);
        };
        if (job_.product) each([&](auto& v, std::int64_t place) { put(job_.product, place, v, count); });
        if (job_.u) {
            Wide<Real> slopes[kTile * kTile] = {};
            each([&](auto& v, std::int64_t place) { slopes[&v - results] = get(job_.u, place, count); });
            apply_gelu<Storage::brief, true>(slopes);
            for (int i = 0; i < kTile * kTile; ++i) results[i] *= slopes[i];
        }
        if (job_.added) each([&](auto& v, std::int64_t place) { v += get(job_.added, place, count); });
        if (job_.out) each([&](auto& v, std::int64_t place) { put(job_.out, place, v, count); });
        if (!job_.activation) return;
        // Of the rounded numbers: the derivatives will be those at the pre-activation that is kept.
        for (int i = 0; i < kTile * kTile; ++i) {
            Element rounded[kWide<Real>];
            store<Storage>(rounded, results[i], kWide<Real>);
            results[i] = load<Storage>(rounded, kWide<Real>);
        }
        apply_gelu<Storage::brief, false>(results);
        each([&](auto& v, std::int64_t place) { put(job_.activation, place, v, count); });
    }

    static Wide<Real> get(const void* image, std::int64_t place, std::int64_t count) {
        return load<Storage>(static_cast<const Element*>(image) + place, count);
    }
    static void put(void* image, std::int64_t place, Wide<Real> v, std::int64_t count) {
        store<Storage>(static_cast<Element*>(image) + place, v, count);
    }

    // Replace a tile by GELU of it, or by the derivative of that.
    template <bool brief, bool slope>
    static void apply_gelu(Wide<Real>* values) {
        if constexpr (std::is_same_v<Real, float>) {
            static_assert(kTile * kTile % kParts == 0);
            for (int i = 0; i < kTile * kTile; i += kParts) {
                Pack pack;
                for (int part = 0; part < kParts; ++part) pack.part[part] = values[i + part];
                const auto phi = gelu<brief>(pack);
                for (int part = 0; part < kParts; ++part)
                    values[i + part] = slope ? phi.first.part[part] : phi.value.part[part];
            }
        } else {
            for (int i = 0; i < kTile * kTile; ++i)
                for (int lane = 0; lane < kWide<Real>; ++lane) {
                    const auto phi = gelu<brief>(values[i][lane]);
                    values[i][lane] = slope ? phi.first : phi.value;
                }
        }
    }

    const ConvolutionJob& job_;
    const Tiles<tile> tiles_;
    std::int64_t inner_, outer_;  // channels that are summed over, and of results
    std::int64_t row_, columns_, panels_;  // of a transformed patch; of products, which panels divide
    std::int64_t block_, blocks_, share_;  // tiles of a unit; how many blocks there are; panels of a unit
    std::int64_t distance_, filters_, products_;  // from a frequency to the next: of patches, filters and products
    bool own_;  // whether every unit transforms the filters of its panels
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
