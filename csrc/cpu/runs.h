// Walk over the elements of a sample, and sum functions of them per channel, in either layout.
//
// Both layouts are seen as short runs of consecutive elements: of one channel (contiguous), or of one pixel
// (channels last). The loops over runs are what compilers turn into vector code; sums are kept in as many lanes as a
// run has elements and folded in a fixed order, so they do not depend on anything but the shape.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace cdn::CDN_VARIANT {
namespace {

constexpr int kLanes = 96, kRun = 96;

// Iterations of the next loop are independent of each other.
#define CDN_INDEPENDENT _Pragma("omp simd")

template <bool channels_last>
struct Runs {
    std::int64_t channels, pixels;

    // Channels last, a run takes so many pixels that it fills vectors.
    std::int64_t tile() const {
        return channels_last ? std::min(pixels, std::max<std::int64_t>(1, kRun / channels)) : 1;
    }
    // The number of different values that f gets for the place of an element.
    std::int64_t width() const { return channels * tile(); }

    // Call f(index of the element, its place) for every element of the sample. The place is the channel, or the
    // element of the run, whose channel is the place modulo the number of channels.
    template <typename F>
    void each(F f) const {
        const std::int64_t columns = channels_last ? width() : pixels, size = channels * pixels;
        for (std::int64_t start = 0, row = 0; start < size; start += columns, ++row) {
            const std::int64_t length = std::min(columns, size - start);
            CDN_INDEPENDENT
            for (std::int64_t i = 0; i < length; ++i) f(start + i, channels_last ? i : row);
        }
    }
};

template <typename Real, int K>
struct Values {
    Real of[K];
};

// K sums per channel, of K functions evaluated together: in Real over short stretches, in double over those.
template <typename Real, int K, bool channels_last>
class Sums {
public:
    explicit Sums(const Runs<channels_last>& runs) : runs_(runs), sums_(K * runs.channels) {}

    const double* row(int k) const { return sums_.data() + k * runs_.channels; }

    // Add f(index of the element, its channel), a Values<Real, K>, over all elements.
    template <typename F>
    void add(F f) {
        if constexpr (channels_last) add_pixels(f);
        else add_channels(f);
    }

private:
    template <typename F>
    void add_channels(F f) {
        const int used = static_cast<int>(std::min<std::int64_t>(kLanes, runs_.pixels));
        for (std::int64_t c = 0; c < runs_.channels; ++c) {
            Real lanes[K][kLanes] = {};
            const std::int64_t start = c * runs_.pixels;
            for (std::int64_t first = 0; first < runs_.pixels; first += kLanes) {
                const int length = static_cast<int>(std::min<std::int64_t>(kLanes, runs_.pixels - first));
                CDN_INDEPENDENT
                for (int i = 0; i < length; ++i) {
                    const Values<Real, K> values = f(start + first + i, c);
                    for (int k = 0; k < K; ++k) lanes[k][i] += values.of[k];
                }
            }
            for (int k = 0; k < K; ++k)
                for (int i = 0; i < used; ++i) sums_[k * runs_.channels + c] += lanes[k][i];
        }
    }

    template <typename F>
    void add_pixels(F f) {
        constexpr std::int64_t kRows = 256;  // one long sum of floats would lose digits
        const std::int64_t columns = runs_.width(), size = runs_.channels * runs_.pixels;
        for (std::int64_t first = 0; first < columns; first += kLanes) {
            const std::int64_t width = std::min<std::int64_t>(kLanes, columns - first);
            for (std::int64_t block = 0; block < size; block += kRows * columns) {
                Real lanes[K][kLanes] = {};
                const std::int64_t last = std::min(block + kRows * columns, size);
                for (std::int64_t start = block; start + first < last; start += columns) {
                    const std::int64_t length = std::min(width, last - start - first);
                    CDN_INDEPENDENT
                    for (std::int64_t i = 0; i < length; ++i) {
                        const Values<Real, K> values = f(start + first + i, first + i);
                        for (int k = 0; k < K; ++k) lanes[k][i] += values.of[k];
                    }
                }
                for (int k = 0; k < K; ++k)
                    for (std::int64_t i = 0; i < width; ++i)
                        sums_[k * runs_.channels + (first + i) % runs_.channels] += lanes[k][i];
            }
        }
    }

    const Runs<channels_last>& runs_;
    std::vector<double> sums_;
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
