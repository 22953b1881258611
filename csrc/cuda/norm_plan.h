// How a pass of the norm is cut into blocks of threads; names and formulas: docs/derivations.md.
//
// A sample lies as [pixels, channels], and statistics are those of groups of channels. A block of threads takes a
// bundle of groups: all of them where they depend on each other (scale-preserving), otherwise as many as read memory
// well. Threads stand in rows of one pixel, each with a vector of channels of one group, and step over the pixels.
//
// A whole pass sums over the pixels of a bundle and then writes, in one launch. Of what it has read, as many steps as
// fit stay in shared memory: if all do, memory is read once. The others are read again, mostly from the second level
// cache. Where there are too few samples to fill the chip, or rows are longer than a block, the pass is split: one
// launch sums over chunks of pixels and tiles of channels, and a second folds those sums and writes.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace cdn {

constexpr int kDepth = 4;            // steps under way: what is read ahead of the arithmetic
constexpr int kMostThreads = 512;    // of a block, so that a thread has 128 registers
constexpr int kFewestThreads = 128;
constexpr int kVectors = 8;          // of a thread, from which on there are more threads
constexpr int kLine = 64;            // bytes that a bundle reads side by side, at least
constexpr int kMostChunks = 64;      // whose sums every block of the second launch adds up

enum NormPhase { kWholePass, kSumPass, kWritePass };

// Of a sweep: the tensors that both of its halves read, those that one does, sums of channels, and scalars of groups.
struct NormNeeds {
    int kept, passing, sums, scalars;
};
constexpr NormNeeds kNormNeeds[] = {{1, 1, 2, 4}, {2, 1, 2, 2}, {3, 0, 5, 7}};  // by cdn_sweep

struct NormCut {
    int pixels, channels, groups, width;  // of a sample; channels of a group
    int bundle;          // groups of a block
    int columns, tiles;  // vectors of a row of a block; blocks side by side that share a bundle
    int rows, steps;     // pixels side by side; steps to the end of a chunk
    int chunk, chunks;   // pixels of a block
    int kept;            // steps that stay in shared memory
    bool coupled;        // groups depend on each other

    // Slots of a tensor in shared memory: of the steps that stay, and of those that pass through if there are others.
    __host__ __device__ int slots() const { return kept + (kept < steps ? kDepth : 0); }
};

// What a GPU offers, and the numbers of a type: bytes of an element, elements of a vector, bytes of a computed number.
struct NormPlace {
    int shared, multiprocessors;
    int element, vector, real;
};

struct NormPlan {
    NormCut cut;
    int threads = 0;  // 0: it does not fit
    int bundles, shared;  // bytes of shared memory
    std::int64_t workspace;  // bytes; 0 for a whole pass

    bool whole() const { return workspace == 0; }
};

// Cut a pass over samples of less than 2^30 values, where vectors of place.vector channels fill a group.
inline NormPlan plan_norm(const NormNeeds& needs, const NormPlace& place, std::int64_t batch, int channels, int pixels,
                          int groups, bool coupled) {
    NormPlan plan{};
    NormCut& cut = plan.cut;
    cut = {pixels, channels, groups, channels / groups};
    cut.coupled = coupled;
    const auto parts = [](std::int64_t n, std::int64_t size) { return static_cast<int>((n + size - 1) / size); };
    cut.bundle = coupled ? groups : std::min(groups, parts(kLine, cut.width * place.element));
    plan.bundles = parts(groups, cut.bundle);
    const int columns = cut.bundle * cut.width / place.vector;
    const std::int64_t vectors = std::int64_t{columns} * pixels;

    int threads = kFewestThreads;
    while (threads < kMostThreads && (threads < columns || vectors > std::int64_t{kVectors} * threads)) threads *= 2;
    const auto shared = [&](int kept) {
        cut.kept = kept;
        const std::int64_t slots = needs.kept * cut.slots() + needs.passing * kDepth;
        const std::int64_t numbers = std::int64_t{threads} * place.vector
            + std::int64_t{needs.sums} * cut.bundle * cut.width + std::int64_t{needs.scalars} * cut.bundle;
        return slots * threads * place.vector * place.element + numbers * place.real;
    };
    const auto arrange = [&] {
        cut.columns = std::min(columns, threads);
        cut.tiles = parts(columns, cut.columns);
        cut.rows = std::min(pixels, threads / cut.columns);
        cut.chunk = pixels;
        cut.chunks = 1;
        cut.steps = parts(pixels, cut.rows);
    };
    for (arrange(); shared(0) > place.shared; arrange()) {
        if (threads == kFewestThreads) return plan;
        threads /= 2;
    }
    int kept = cut.steps;
    if (shared(kept) > place.shared)
        for (kept = 0; shared(kept + 1) <= place.shared;) ++kept;

    const std::int64_t blocks = batch * plan.bundles * cut.tiles;
    if (cut.tiles > 1 || (kept < cut.steps && blocks < place.multiprocessors)) {
        const int wanted = std::min(kMostChunks, parts(2 * place.multiprocessors, std::max<std::int64_t>(blocks, 1)));
        kept = 0;
        cut.steps = parts(cut.steps, std::min(wanted, parts(cut.steps, kVectors)));
        cut.chunk = cut.steps * cut.rows;
        cut.chunks = parts(pixels, cut.chunk);
        plan.workspace = batch * cut.chunks * needs.sums * channels * place.real;
    }
    plan.threads = threads;
    plan.shared = static_cast<int>(shared(kept));
    return plan;
}

}  // namespace cdn
