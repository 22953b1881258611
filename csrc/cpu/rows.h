// Walk over the elements of a sample, and sum functions of them per channel, in either layout.
//
// Both layouts are seen as rows of consecutive elements: of some pixels (channels last), or of one channel
// (contiguous). A function is called with the place of every element, which reads and writes there: for packs of
// elements where the storage has them, one vector of each of a few rows, and one by one for what is left, in loops that
// compilers turn into vector code. Sums are kept in as many lanes as a row has elements and folded in a fixed
// order, so they do not depend on anything but the shape.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "pack.h"

namespace cdn::CDN_VARIANT {
namespace {

// Iterations of the next loop are independent of each other.
#define CDN_INDEPENDENT _Pragma("omp simd")

// Memory that begins with a cache line, not initialized: vectors across two lines take twice the time.
template <typename T>
struct Aligned {
    using value_type = T;
    static constexpr std::align_val_t kLine{64};

    Aligned() = default;
    template <typename Other>
    Aligned(const Aligned<Other>&) {}
    T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
    void deallocate(T* start, std::size_t) { ::operator delete(start, kLine); }
    template <typename U>
    void construct(U*) {}
    template <typename U, typename V>
    void construct(U* place, V&& value) {
        *place = value;
    }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};
template <typename Real>
using Line = std::vector<Real, Aligned<Real>>;

// One element: its number in the sample, where its channel's coefficients are, and where its sums are.
template <typename Storage>
struct Single {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;

    std::int64_t element, coefficient;
    Real* sums;
    std::int64_t pitch;

    Real load(const Element* image) const { return Storage::load(image[element]); }
    void store(Element* image, Real a) const { image[element] = Storage::store(a); }
    // As they are computed with, before they are stored.
    Real kept(const Real* values) const { return values[element]; }
    void keep(Real* values, Real a) const { values[element] = a; }
    // The coefficient of the element's channel.
    Real of(const Line<Real>& row) const { return row[coefficient]; }
    // Add a, or a b, to sum k.
    void add(int k, Real a) const { sums[k * pitch] += a; }
    void add(int k, Real a, Real b) const { sums[k * pitch] = multiply_add(a, b, sums[k * pitch]); }
};

// A pack of elements, one vector of each of kParts rows.
template <typename Storage, bool channels_last>
struct Packed {
    using Element = typename Storage::Element;

    std::int64_t element, coefficient;
    float* sums;
    std::int64_t pitch, columns;

    Pack load(const Element* image) const {
        Pack a;
        CDN_EACH_PART a.part[i] = Vectors<Storage>::load(image + element + i * columns);
        return a;
    }
    void store(Element* image, Pack a) const {
        CDN_EACH_PART Vectors<Storage>::store(image + element + i * columns, a.part[i]);
    }
    Pack kept(const float* values) const {
        Pack a;
        CDN_EACH_PART a.part[i] = read<Vector>(values + element + i * columns);
        return a;
    }
    void keep(float* values, Pack a) const { CDN_EACH_PART write(values + element + i * columns, a.part[i]); }
    Pack of(const Line<float>& row) const {
        if constexpr (channels_last) return read<Vector>(row.data() + coefficient);
        else return row[coefficient];
    }
    void add(int k, Pack a) const {
        Vector sum = read<Vector>(sums + k * pitch);
        CDN_EACH_PART sum += a.part[i];
        write(sums + k * pitch, sum);
    }
    void add(int k, Pack a, Pack b) const {
        Vector sum = read<Vector>(sums + k * pitch);
        CDN_EACH_PART sum = multiply_add(a.part[i], b.part[i], sum);
        write(sums + k * pitch, sum);
    }
};

// Fetch what an image, which may be null, holds some way ahead of a block, to write to it unless it is const.
// Processors guess what is read next, but not while values are kept beside it, nor what is written only when all of a
// sample has been read.
template <typename Element>
CDN_HOST_DEVICE void fetch(Element* image, std::int64_t first, std::int64_t length) {
    constexpr std::int64_t kLine = 64 / sizeof(Element), kAhead = 2048 / sizeof(Element);
    if (!image) return;
    for (std::int64_t i = 0; i < length; i += kLine)
        __builtin_prefetch(image + first + kAhead + i, !std::is_const_v<Element>, 3);
}

template <bool channels_last>
struct Rows {
    static constexpr std::int64_t kRow = 64;  // what a row aims at: a few vectors, so that a block is a few lines

    std::int64_t channels, pixels;
    std::int64_t bytes;  // of an element
    const std::int64_t size = channels * pixels;
    // The elements of a row. Channels last it takes 2^n pixels, so that few lengths are left that fill no vectors.
    const std::int64_t columns = channels_last ? channels * tile() : part();
    // A row's coefficients: one for each element, or one.
    const std::int64_t width = channels_last ? columns : channels;
    // The elements whose rows belong together.
    const std::int64_t stretch = channels_last ? size : pixels;

    std::int64_t tile() const {
        std::int64_t tile = 1;
        while (2 * tile * channels <= kRow && 2 * tile <= pixels) tile *= 2;
        return tile;
    }
    // Of a channel, a cache line, so that lines are met in their order, or less where all parts of a pack must find
    // one; in another order, processors guess wrongly what is read next.
    std::int64_t part() const {
        const std::int64_t least = kLanes * kParts;
        return pixels < least ? pixels : std::min(pixels / least * kLanes, std::max<std::int64_t>(64 / bytes, kLanes));
    }

    // Call f with the place of every element of the sample. Of `images`, what lies ahead is fetched.
    template <typename Storage, typename F, typename... Images>
    void each(F f, Images... images) const {
        for (std::int64_t first = 0, row = 0; first < size; first += stretch, ++row)
            walk<Storage>(first, stretch, row, nullptr, 0, f, images...);
    }

    // Call f with the places of elements first .. first + length of a stretch, and their sums in lanes. Flatten:
    // compilers do not see by themselves that an f of hundreds of instructions belongs in the loop, with its constants.
    template <typename Storage, typename F, typename... Images>
    __attribute__((flatten)) void walk(std::int64_t first, std::int64_t length, std::int64_t row,
                                       typename Storage::Real* lanes, std::int64_t pitch, F f, Images... images) const {
        std::int64_t packed = 0, packed_length = 0;
        if constexpr (Vectors<Storage>::exists) {
            packed = columns / kLanes * kLanes;
            packed_length = length / (kParts * columns) * (kParts * columns);
            for (std::int64_t start = 0; start < packed_length; start += kParts * columns) {
                (fetch(images, first + start, kParts * columns), ...);
                for (std::int64_t i = 0; i < packed; i += kLanes)
                    f(Packed<Storage, channels_last>{first + start + i, channels_last ? i : row, lanes + i, pitch,
                                                     columns});
            }
        }
        if (packed == columns && packed_length == length) return;
        for (std::int64_t start = 0; start < length; start += columns) {
            const std::int64_t begin = start < packed_length ? packed : 0, end = std::min(columns, length - start);
            CDN_INDEPENDENT
            for (std::int64_t i = begin; i < end; ++i)
                f(Single<Storage>{first + start + i, channels_last ? i : row, lanes + i, pitch});
        }
    }
};

// K sums per channel, taken together: in Real over short stretches, in double over those.
template <typename Storage, int K, bool channels_last>
class Sums {
    using Real = typename Storage::Real;

public:
    explicit Sums(const Rows<channels_last>& rows)
        : rows_(rows), pitch_((rows.columns + kAlign - 1) / kAlign * kAlign), lanes_(K * pitch_),
          sums_(K * rows.channels) {}

    const double* row(int k) const { return sums_.data() + k * rows_.channels; }
    void clear() { std::fill(sums_.begin(), sums_.end(), 0.0); }

    // Call f with the place of every element of the sample, to add to its sums 0 .. K - 1; images as for Rows::each.
    template <typename F, typename... Images>
    void add(F f, Images... images) {
        const std::int64_t longest = kRows * rows_.columns;
        for (std::int64_t start = 0, row = 0; start < rows_.size; start += rows_.stretch, ++row) {
            for (std::int64_t done = 0; done < rows_.stretch; done += longest) {
                std::fill(lanes_.begin(), lanes_.end(), Real(0));
                rows_.template walk<Storage>(start + done, std::min(longest, rows_.stretch - done), row, lanes_.data(),
                                             pitch_, f, images...);
                for (int k = 0; k < K; ++k) fold(lanes_.data() + k * pitch_, sums_.data() + k * rows_.channels, row);
            }
        }
    }

private:
    static constexpr std::int64_t kRows = 256;  // one long sum of floats would lose digits
    static constexpr int kChains = 8;  // of a sum over a row, which as one chain of additions would take long
    static constexpr int kAlign = 16;

    void fold(const Real* lanes, double* sums, std::int64_t row) const {
        if constexpr (channels_last) {
            for (std::int64_t first = 0; first < rows_.columns; first += rows_.channels)
                for (std::int64_t c = 0; c < rows_.channels; ++c) sums[c] += lanes[first + c];
        } else {
            double parts[kChains] = {};
            for (std::int64_t first = 0; first < pitch_; first += kChains)
                for (int i = 0; i < kChains; ++i) parts[i] += lanes[first + i];
            sums[row] += (parts[0] + parts[4] + (parts[1] + parts[5])) + (parts[2] + parts[6] + (parts[3] + parts[7]));
        }
    }

    const Rows<channels_last>& rows_;
    const std::int64_t pitch_;
    Line<Real> lanes_;
    std::vector<double> sums_;
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
