// The choice of a variant, and the split of work over threads.
#pragma once

#include "convolution.h"
#include "variants.h"

namespace cdn {

// The kernels of one capability; null if this processor cannot run it.
struct Variant {
    const NoiseKernels* noise;
    const Passes* passes;
};
const Variant* find(int capability);

// The convolutions of an engine; null if this processor has no such engine.
const ConvolutionKernels* find_engine(int engine);

// Run run(data, part) for parts 0 .. parts - 1, each on a thread of its own where there are threads.
void run_parts(int parts, void (*run)(const void* data, int part), const void* data);

// Run work(part, first, last) over 0 .. units in one part per thread.
template <typename Work>
void split_parts(std::int64_t units, int threads, Work work) {
    if (threads <= 1) return work(0, std::int64_t{0}, units);
    const auto part = [&](int i) { work(i, units * i / threads, units * (i + 1) / threads); };
    run_parts(threads, [](const void* data, int i) { (*static_cast<decltype(part)*>(data))(i); }, &part);
}

// Run work(first, last) over 0 .. units, on all threads if there are more than kSerial elements.
template <typename Work>
void split(std::int64_t units, std::int64_t elements, int threads, Work work) {
    // Below this many elements, waking a second thread costs more than it saves.
    constexpr std::int64_t kSerial = 1 << 15;
    split_parts(units, elements < kSerial ? 1 : threads,
                [&](int, std::int64_t first, std::int64_t last) { work(first, last); });
}

}  // namespace cdn
