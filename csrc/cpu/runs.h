// Walk over the elements of a sample, and sum functions of them per channel, in either layout.
//
// Both layouts are seen as runs of consecutive elements: of one channel (contiguous), or of some pixels (channels
// last). The loops over runs are what compilers turn into vector code; sums are kept in as many lanes as a run has
// elements and folded in a fixed order, so they do not depend on anything but the shape.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace cdn::CDN_VARIANT {
namespace {

// Iterations of the next loop are independent of each other.
#define CDN_INDEPENDENT _Pragma("omp simd")

template <bool channels_last>
struct Runs {
    static constexpr std::int64_t kRun = 256;  // what a run aims at: many vectors, whose sums stay in the first cache

    std::int64_t channels, pixels;
    const std::int64_t size = channels * pixels;
    // The elements of a run. Channels last it takes 2^n pixels, so that few lengths are left that fill no vectors.
    // Contiguous, sums are folded for every channel, which costs more than a shorter run.
    const std::int64_t columns = channels_last ? channels * tile() : std::min(pixels, kRun / 2);
    // The number of different values that f gets for the place of an element.
    const std::int64_t width = channels_last ? columns : channels;

    std::int64_t tile() const {
        std::int64_t tile = 1;
        while (2 * tile * channels <= kRun && 2 * tile <= pixels) tile *= 2;
        return tile;
    }

    // Call f(index of the element, its place) for every element of the sample. The place is the channel, or the
    // element of the run, whose channel is the place modulo the number of channels.
    template <typename F>
    void each(F f) const {
        const std::int64_t step = channels_last ? columns : pixels;
        for (std::int64_t start = 0, row = 0; start < size; start += step, ++row) {
            const std::int64_t length = std::min(step, size - start);
            CDN_INDEPENDENT
            for (std::int64_t i = 0; i < length; ++i) f(start + i, channels_last ? i : row);
        }
    }
};

// K sums per channel, taken together: in Real over short stretches, in double over those.
template <typename Real, int K, bool channels_last>
class Sums {
public:
    explicit Sums(const Runs<channels_last>& runs)
        : runs_(runs), pitch_((runs.columns + kParts - 1) / kParts * kParts), lanes_(K * pitch_),
          sums_(K * runs.channels) {}

    const double* row(int k) const { return sums_.data() + k * runs_.channels; }

    // Call f(index of the element, its place, sum) for every element of the sample, to add to sum(0) .. sum(K - 1), and
    // before each run ahead(index of its first element, its length).
    template <typename F, typename Ahead>
    void add(F f, Ahead ahead) {
        constexpr std::int64_t kRows = 256;  // one long sum of floats would lose digits
        const std::int64_t columns = runs_.columns, pitch = pitch_, stretch = channels_last ? runs_.size : runs_.pixels;
        Real* lanes = lanes_.data();
        for (std::int64_t start = 0, row = 0; start < runs_.size; start += stretch, ++row) {
            for (std::int64_t block = start; block < start + stretch; block += kRows * columns) {
                const std::int64_t last = std::min(block + kRows * columns, start + stretch);
                std::fill(lanes_.begin(), lanes_.end(), Real(0));
                for (std::int64_t first = block; first < last; first += columns) {
                    const std::int64_t length = std::min(columns, last - first);
                    ahead(first, length);
                    CDN_INDEPENDENT
                    for (std::int64_t i = 0; i < length; ++i)
                        f(first + i, channels_last ? i : row, [=](int k) -> Real& { return lanes[k * pitch + i]; });
                }
                for (int k = 0; k < K; ++k) fold(lanes + k * pitch, sums_.data() + k * runs_.channels, row);
            }
        }
    }

    template <typename F>
    void add(F f) {
        add(f, [](std::int64_t, std::int64_t) {});
    }

private:
    static constexpr int kParts = 8;  // of a sum over a run, which as one chain of additions would take long

    void fold(const Real* lanes, double* sums, std::int64_t row) const {
        if constexpr (channels_last) {
            for (std::int64_t first = 0; first < runs_.columns; first += runs_.channels)
                for (std::int64_t c = 0; c < runs_.channels; ++c) sums[c] += lanes[first + c];
        } else {
            double parts[kParts] = {};
            for (std::int64_t first = 0; first < pitch_; first += kParts)
                for (int i = 0; i < kParts; ++i) parts[i] += lanes[first + i];
            sums[row] += (parts[0] + parts[4] + (parts[1] + parts[5])) + (parts[2] + parts[6] + (parts[3] + parts[7]));
        }
    }

    const Runs<channels_last>& runs_;
    const std::int64_t pitch_;
    std::vector<Real> lanes_;
    std::vector<double> sums_;
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
