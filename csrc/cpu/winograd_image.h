// Forward convolutions and gradients by the input with minimal filtering.
//
// Filters are transformed first, for all threads. A unit is a block of tiles: its patches are transformed, multiplied
// by the filters frequency by frequency, and transformed back into results, on which the pass that follows is computed
// before they leave the registers. The products of a frequency take the place of the transformed patches of the one
// before, so that a block stays in the second-level cache. Where one block has all tiles, its patches are transformed
// first, for all threads, and a unit is a range of output channels, whose filters it transforms.
#pragma once

#include <algorithm>
#include <utility>

#include "convolution.h"
#include "winograd_product.h"

namespace cdn::CDN_VARIANT {
namespace {

// A tile of results, or of gradients by them: its sample, its first row and column, and how many lie in the image.
struct Tile {
    std::int64_t sample, y, x, rows, columns;
};

// Images that tiles or patches are cut from.
struct Extent {
    std::int64_t height, width, channels;

    std::int64_t at(std::int64_t sample, std::int64_t y, std::int64_t x) const {
        return ((sample * height + y) * width + x) * channels;
    }
};

// Where the first pixel of a patch is, and how far the next one.
struct Corner {
    std::int64_t sample, y, x, step;
};

// Call use(read), where read(i, j) gives vectors of a patch of channels that begin with one; 0 is outside.
template <typename Storage, int size, typename Use>
CDN_HOST_DEVICE void read_patch(const void* image, const Extent& extent, const Corner& first, std::int64_t channel,
                                Use use) {
    using Real = typename Storage::Real;
    const std::int64_t count = extent.channels - channel, step = first.step;
    const auto* corner =
        static_cast<const typename Storage::Element*>(image) + extent.at(first.sample, first.y, first.x) + channel;
    const std::int64_t down = step * extent.width * extent.channels, across = step * extent.channels;
    const bool inside = first.y >= 0 && first.x >= 0 && first.y + (size - 1) * step < extent.height
        && first.x + (size - 1) * step < extent.width;
    if (inside && count >= kWide<Real>)
        return use([=](int i, int j) CDN_INLINE { return load<Storage>(corner + i * down + j * across, kWide<Real>); });
    const std::int64_t height = extent.height, width = extent.width, first_y = first.y, first_x = first.x;
    use([=](int i, int j) CDN_INLINE {
        const std::int64_t y = first_y + i * step, x = first_x + j * step;
        const bool here = y >= 0 && y < height && x >= 0 && x < width;
        return here ? load<Storage>(corner + i * down + j * across, count) : Wide<Real>{};
    });
}

// The tiles of all samples, in the order of their pixels.
template <typename Scheme>
class Tiles {
    static constexpr std::int64_t kTile = Scheme::kTile, kStep = Scheme::kStep;

public:
    explicit Tiles(const ConvolutionJob& job)
        : height_(job.out_height()), width_(job.out_width()), down_(divide_up(height_, kTile)),
          across_(divide_up(width_, kTile)), count_(job.batch * down_ * across_) {}

    std::int64_t count() const { return count_; }

    Tile operator[](std::int64_t number) const {
        const std::int64_t row = number / across_, y = row % down_ * kTile, x = number % across_ * kTile;
        return {row / down_, y, x, std::min(kTile, height_ - y), std::min(kTile, width_ - x)};
    }

    // Where the neighbours of a tile begin in the image that is convolved.
    static Corner neighbours(const Tile& at, Phase phase) {
        return {at.sample, kStep * at.y - Scheme::before(phase.odd_y), kStep * at.x - Scheme::before(phase.odd_x),
                kStep};
    }

    // The elements of the rows of images that a range of tiles touches, of their results if step is 1: first and end.
    std::pair<std::int64_t, std::int64_t> elements(const Extent& extent, std::int64_t step, std::int64_t first,
                                                   std::int64_t last) const {
        if (first >= last) return {0, 0};
        const Tile begin = (*this)[first], end = (*this)[last - 1];
        return {extent.at(begin.sample, step * begin.y, 0),
                extent.at(end.sample, std::min(extent.height, step * (end.y + end.rows)), 0)};
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
// Inner channels whose filters for a panel are multiplied by before the next are transformed.
template <typename Real>
constexpr std::int64_t kNear = 4096 / kPanel<Real>;
constexpr std::int64_t kTogether = 16;  // inner channels whose filters are transformed in turn
constexpr std::int64_t kFewestTiles = 11 * kRows;  // of a block: the filters are read once for each

template <typename Storage, typename Scheme>
class WinogradImage {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    static constexpr int kPatch = Scheme::kPatch;
    static constexpr std::int64_t kTile = Scheme::kTile, kFrequencies = kPatch * kPatch;
    static constexpr std::int64_t kSide = Scheme::kSide, kArea = kSide * kSide;  // taps of a row and of a filter
    static constexpr std::int64_t kFilters = kWide<Real>;  // output channels whose filters are packed together

public:
    WinogradImage(const ConvolutionJob& job, int threads) : job_(job), tiles_(job) {
        const Extent images{job.height, job.width, job.inputs}, results{job.out_height(), job.out_width(), job.outputs};
        from_ = forward_ ? images : results, to_ = forward_ ? results : images;
        inner_ = from_.channels, outer_ = to_.channels;
        inner_step_ = inner_phases_ == 1 ? inner_ : round_up(inner_, kWide<Real>);
        outer_step_ = round_up(outer_, kWide<Real>);
        depth_ = inner_phases_ * inner_step_;
        row_ = round_up(depth_, kWide<Real>);
        columns_ = outer_phases_ * outer_step_;
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
        // With phases the order of summation follows from it, so that it must not depend on the number of blocks.
        if (inner_phases_ > 1) near_ = std::min(2 * kNear<Real>, inner_step_);
        else near_ = own_ ? std::min(kNear<Real>, inner_step_) : inner_step_;
        filters_ = frequency_distance((own_ ? inner_phases_ * near_ : panels_ * depth_) * kPanel<Real>, sizeof(Real));
        products_ = own_ ? frequency_distance(block_ * kPanel<Real>, sizeof(Real)) : distance_;
    }

    ConvolutionPlan plan() const {
        const std::int64_t bytes = kFrequencies * std::int64_t{sizeof(Real)};
        const std::int64_t units = blocks_ * divide_up(panels_, share_);
        if (own_) return {tiles_.count(), units, 0, distance_ * bytes, (filters_ + products_) * bytes};
        return {columns_ / kFilters, units, 0, filters_ * bytes, distance_ * (bytes + bytes / kFrequencies)};
    }

    // Transform what all units share: filters of a vector of columns, or the patches of a tile.
    void pack_shared(Real* shared, std::int64_t unit) const {
        if (own_) return transform_tiles(shared + unit * row_, unit, unit + 1);
        const std::int64_t first = unit * kFilters;
        Real* to = shared + first / kPanel<Real> * depth_ * kPanel<Real> + first % kPanel<Real>;
        for_near([&](std::int64_t inner, std::int64_t channels) {
            pack(to + inner * inner_phases_ * kPanel<Real>, first, inner, inner + channels);
        });
    }

    // Compute the results of a block of tiles in a range of panels.
    void multiply_tiles(const Real* shared, Real* scratch, std::int64_t unit) const {
        const std::int64_t first = unit % blocks_ * block_, last = std::min(first + block_, tiles_.count());
        const std::int64_t start = unit / blocks_ * share_, end = std::min(start + share_, panels_);
        if (own_) return multiply_own(shared, scratch, start, end);
        Real* patches = scratch + distance_;
        transform_tiles(patches, first, last);
        const Distances distances{row_, 1, kPanel<Real>, columns_};
        Wanted wanted = everything_near(first, last, kFrequencies * (end - start) * divide_up(last - first, kRows));
        for (int f = 0; f < kFrequencies; ++f)
            for (std::int64_t panel = start; panel < end; ++panel)
                for_near([&](std::int64_t inner, std::int64_t channels) {
                    const Real* filters = shared + (panel * depth_ + inner * inner_phases_) * kPanel<Real>;
                    multiply_panel(f, patches + inner, filters, scratch + f * distance_ + panel * kPanel<Real>,
                                   last - first, panel, distances, channels, inner > 0, wanted);
                });
        finish_tiles(scratch, columns_, first, last, start * kPanel<Real>, end * kPanel<Real>);
    }

private:
    // Call use(first, count) for the inner channels whose products are summed one after the other.
    template <typename Use>
    void for_near(Use use) const {
        for (std::int64_t inner = 0; inner < inner_step_; inner += near_)
            use(inner, std::min(near_, inner_step_ - inner));
    }

    // The images of the next block of tiles, and what the end of this one reads and writes.
    Wanted everything_near(std::int64_t first, std::int64_t last, std::int64_t steps) const {
        const std::int64_t next_last = std::min(last + block_, tiles_.count());
        const auto [next, next_end] = tiles_.elements(from_, forward_ ? Scheme::kStep : 1, last, next_last);
        const auto [own, own_end] = tiles_.elements(to_, forward_ ? 1 : Scheme::kStep, first, last);
        const auto* images = static_cast<const Element*>(job_.first);
        Wanted wanted;
        wanted.add(images + next, images + next_end, steps);
        for (void* result : {job_.out, job_.activation, job_.product})
            if (auto* to = static_cast<Element*>(result)) wanted.add(to + own, to + own_end, steps);
        if (const auto* u = static_cast<const Element*>(job_.u)) wanted.add(u + own, u + own_end, steps);
        const std::int64_t added_end = std::min(own_end, to_.at(job_.sourced, 0, 0));
        if (const auto* added = static_cast<const Element*>(job_.added); added && own < added_end)
            wanted.add(added + own, added + added_end, steps);
        return wanted;
    }

    // Multiply channels of patches by a panel of their filters at a frequency, those phases that it has.
    void multiply_panel(int f, const Real* patches, const Real* filters, Real* products, std::int64_t tiles,
                        std::int64_t panel, Distances distances, std::int64_t channels, bool add,
                        Wanted& wanted) const {
        const PhaseRange range = Scheme::phases(f / kPatch, f % kPatch);
        const std::int64_t column = panel * kPanel<Real>, step = outer_step_;
        if (outer_phases_ > 1
            && (column >= (range.first + range.count) * step || column + kPanel<Real> <= range.first * step))
            return;
        const PhaseRange phases = inner_phases_ > 1 ? range : PhaseRange{0, 1};
        for (int phase = phases.first; phase < phases.first + phases.count; ++phase)
            multiply<Real>(patches + f * distance_ + phase * inner_step_,
                           filters + f * filters_ + phase * channels * kPanel<Real>, products, tiles, channels,
                           columns_ - column, distances, add || phase > phases.first, wanted);
    }

    // The same where no other block needs the filters: they are transformed here, a panel and some channels at a time,
    // and stay near.
    void multiply_own(const Real* patches, Real* filters, std::int64_t start, std::int64_t end) const {
        Real* products = filters + kFrequencies * filters_;
        const Distances distances{row_, 1, kPanel<Real>, kPanel<Real>};
        Wanted nothing;
        for (std::int64_t panel = start; panel < end; ++panel) {
            const std::int64_t first = panel * kPanel<Real>, last = std::min(first + kPanel<Real>, columns_);
            for_near([&](std::int64_t inner, std::int64_t channels) {
                for (std::int64_t column = first; column < last; column += kFilters)
                    pack(filters + column - first, column, inner, inner + channels);
                for (int f = 0; f < kFrequencies; ++f)
                    multiply_panel(f, patches + inner, filters, products + f * products_, block_, panel, distances,
                                   channels, inner > 0, nothing);
            });
            finish_tiles(products - first, kPanel<Real>, 0, block_, first, last);
        }
    }

    void transform_tiles(Real* patches, std::int64_t first, std::int64_t last) const {
        for (std::int64_t t = first; t < last; ++t) {
            const Tile at = tiles_[t];
            Real* row = patches + (t - first) * row_;
            if (inner_phases_ == 1) {
                transform_patches(
                    forward_ ? tiles_.neighbours(at, Scheme::phase(0))
                             : Corner{at.sample, at.y - Scheme::kBefore, at.x - Scheme::kBefore, 1},
                    [&](std::int64_t channel) { return Spectrum<Real, Scheme>{row + channel, distance_}; });
                continue;
            }
            for (int number = 0; number < inner_phases_; ++number)
                with_phase<Scheme>(number, [&](auto phase) {
                    transform_patches(tiles_.neighbours(at, Scheme::phase(phase)), [&](std::int64_t channel) {
                        return Spectrum<Real, Scheme, phase>{row + phase * inner_step_ + channel, distance_};
                    });
                });
        }
    }

    // Transform the patches of all channels to what place(channel) gives.
    template <typename Place>
    void transform_patches(const Corner& first, Place place) const {
        for (std::int64_t channel = 0; channel < inner_; channel += kWide<Real>) {
            const auto to = place(channel);
            read_patch<Storage, kPatch>(job_.first, from_, first, channel, [=](auto read) CDN_INLINE {
                transform<Real, typename Scheme::template Data<Real>>(read, to);
            });
        }
    }

    // Transform products [frequency, tile, row of columns] back, those of a range of columns.
    void finish_tiles(Real* products, std::int64_t row, std::int64_t first, std::int64_t last, std::int64_t column,
                      std::int64_t end) const {
        for (std::int64_t t = first; t < last; ++t) {
            const Tile at = tiles_[t];
            for (std::int64_t c = column; c < std::min(end, columns_); c += kWide<Real>) {
                Real* from = products + (t - first) * row + c;
                if (outer_phases_ == 1) {
                    finish_tile(Spectrum<Real, Scheme>{from, products_}, at, 1, c);
                    continue;
                }
                with_phase<Scheme>(static_cast<int>(c / outer_step_), [&](auto number) {
                    constexpr Phase phase = Scheme::phase(number);
                    constexpr std::int64_t step = Scheme::kStep;
                    const auto there = [](std::int64_t side, std::int64_t begin) {
                        return std::clamp<std::int64_t>(divide_up(side - begin, step), 0, kTile);
                    };
                    const std::int64_t y = step * at.y + phase.odd_y, x = step * at.x + phase.odd_x;
                    const Tile placed{at.sample, y, x, there(to_.height, y), there(to_.width, x)};
                    finish_tile(Spectrum<Real, Scheme, number>{from, products_}, placed, step, c % outer_step_);
                });
            }
        }
    }

    // Those of a vector of channels of a tile whose results are some pixels apart.
    template <typename From>
    void finish_tile(const From& from, const Tile& at, std::int64_t step, std::int64_t channel) const {
        const bool whole = at.rows == kTile && at.columns == kTile && channel <= outer_ - kWide<Real>;
        whole ? finish<true>(from, at, step, channel) : finish<false>(from, at, step, channel);
    }

    // Transform the filters of a vector of columns and a range of inner channels to [frequency, channel, panel].
    void pack(Real* to, std::int64_t column, std::int64_t begin, std::int64_t end) const {
        const std::int64_t first = column % outer_step_, count = std::min(kFilters, outer_ - first);
        const auto* from = static_cast<const Element*>(job_.second);
        Wide<Real> taps[kTogether][kArea];
        for (std::int64_t start = begin; start < end; start += kTogether) {
            const std::int64_t together = std::min(kTogether, inner_ - start);
            if (forward_) turn(from, first, count, start, together, taps);
            else rotate(from, first, count, start, together, taps);
            const std::int64_t all = std::min(kTogether, end - start);
            for (std::int64_t k = together; k < all; ++k) std::fill_n(taps[k], kArea, Wide<Real>{});
            for (int number = 0; number < inner_phases_; ++number)
                with_phase<Scheme>(forward_ ? number : static_cast<int>(column / outer_step_), [&](auto phase) {
                    const std::int64_t row = (inner_phases_ == 1 ? 0 : phase * (end - begin)) + start - begin;
                    for (std::int64_t k = 0; k < all; ++k) pack_taps<phase>(to + (row + k) * kPanel<Real>, taps[k]);
                });
        }
    }

    // Transform the taps of a phase, of filters in the lanes of vectors.
    template <int number>
    void pack_taps(Real* to, const Wide<Real>* filter) const {
        constexpr Phase phase = Scheme::phase(number);
        transform<Real, typename Scheme::template Filter<Real>>(
            [=](int i, int j) CDN_INLINE {
                const int y = Scheme::tap(phase.odd_y, i), x = Scheme::tap(phase.odd_x, j);
                return y < 0 || x < 0 ? Wide<Real>{} : filter[y * kSide + x];
            },
            Spectrum<Real, Scheme, number>{to, filters_});
    }

    // Filters [output, tap, input]: the lanes of a vector are to be outputs, so squares of both are transposed.
    void turn(const Element* from, std::int64_t first, std::int64_t count, std::int64_t start, std::int64_t together,
              Wide<Real> (*taps)[kArea]) const {
        for (std::int64_t k = 0; k < together; k += kFilters)
            for (int tap = 0; tap < kArea; ++tap) {
                const Element* corner = from + (first * kArea + tap) * inner_ + start + k;
                Wide<Real> square[kFilters] = {};
                for (std::int64_t lane = 0; lane < count; ++lane)
                    square[lane] = load<Storage>(corner + lane * kArea * inner_, together - k);
                transpose<Real>(square);
                for (std::int64_t i = 0; i < kFilters; ++i) taps[k + i][tap] = square[i];
            }
    }

    // The gradient by the input is a convolution by filters turned by 180 degrees, whose inputs are the outputs.
    void rotate(const Element* from, std::int64_t first, std::int64_t count, std::int64_t start, std::int64_t together,
                Wide<Real> (*taps)[kArea]) const {
        for (std::int64_t k = 0; k < together; ++k)
            for (int tap = 0; tap < kArea; ++tap)
                taps[k][kArea - 1 - tap] = load<Storage>(from + ((start + k) * kArea + tap) * outer_ + first, count);
    }

    // Transform products back to a tile of results, round them, and what follows them.
    template <bool whole, typename From>
    void finish(const From& products, const Tile& at, std::int64_t step, std::int64_t channel) const {
        using Back = typename Scheme::template Result<Real>;
        const std::int64_t corner = to_.at(at.sample, at.y, at.x) + channel;
        const std::int64_t count = whole ? kWide<Real> : std::min(outer_ - channel, kWide<Real>);
        const std::int64_t rows = whole ? kTile : at.rows, columns = whole ? kTile : at.columns;
        const std::int64_t down = step * to_.width * outer_, across = step * outer_;
        const bool sourced = job_.added && at.sample < job_.sourced;
        if (!job_.product && !job_.u && !sourced && !job_.activation) {
            auto* out = static_cast<Element*>(job_.out) + corner;
            return transform<Real, Back>(products, [=](int i, int j, Wide<Real> v) CDN_INLINE {
                if (whole || (i < rows && j < columns)) store<Storage>(out + i * down + j * across, v, count);
            });
        }
        Wide<Real> results[kTile * kTile];
        transform<Real, Back>(products, [&](int i, int j, Wide<Real> v) CDN_INLINE { results[i * kTile + j] = v; });
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
        if (sourced) each([&](auto& v, std::int64_t place) { v += get(job_.added, place, count); });
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
    const Tiles<Scheme> tiles_;
    const bool forward_ = job_.kind == CDN_CONV_FORWARD;
    const int inner_phases_ = forward_ ? Scheme::kPhases : 1, outer_phases_ = forward_ ? 1 : Scheme::kPhases;
    Extent from_, to_;  // of what is convolved, and of results
    std::int64_t inner_, outer_;  // their channels
    std::int64_t inner_step_, outer_step_;  // from a phase to the next, in what is summed over and in columns
    std::int64_t near_;  // inner channels of a phase whose filters lie together, and are multiplied by in turn
    std::int64_t depth_, row_;  // what is summed over, and in whole vectors: of a transformed patch
    std::int64_t columns_, panels_;  // of products, and their panels
    std::int64_t block_, blocks_, share_;  // tiles of a unit; how many blocks there are; panels of a unit
    std::int64_t distance_, filters_, products_;  // from a frequency to the next: of patches, filters and products
    bool own_;  // whether every unit transforms the filters of its panels
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
