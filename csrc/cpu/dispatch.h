// The choice of a variant, and the split of work over threads.
#pragma once

#include "variants.h"

namespace cdn {

// The kernels of one capability; null if this processor cannot run it.
struct Variant {
    const NoiseKernels* noise;
    const Passes* passes;
};
const Variant* find(int capability);

// Run work(first, last) over 0 .. units, on all threads if there are more than kSerial elements.
template <typename Work>
void split(std::int64_t units, std::int64_t elements, int threads, Work work) {
    // Below this many elements, waking a second thread costs more than it saves.
    constexpr std::int64_t kSerial = 1 << 15;
    if (threads <= 1 || elements < kSerial) return work(std::int64_t{0}, units);
    // Always the full team: OpenMP ends threads that a smaller one leaves idle, and torch wants them back.
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) work(units * part / threads, units * (part + 1) / threads);
}

}  // namespace cdn
