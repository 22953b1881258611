// What the sweeps of the norm are made of: walking over the pixels of a block, and adding up what its threads found.
#pragma once

#include <cuda_pipeline.h>

#include "../floor.h"
#include "../gelu.h"
#include "norm_plan.h"
#include "storage.h"

extern __shared__ __align__(16) unsigned char cdn_shared[];

namespace cdn {

// The arguments of a pass, as for cdn_gelu_norm; sums are [batch, chunks, K, channels] of a pass in two launches.
struct NormPass {
    const void *x, *residual, *gain, *grad, *source, *tangent;
    void *statistics, *sum, *out, *tangent_out, *gain_grad, *sums;
    double eps;
    NormPhase phase;
    NormCut cut;
};

// The statistics of a sample: per group mean b = pivot + mean, in two parts so that a large mean keeps its digits, r,
// and k = V r^2; per sample s, which is 0 if T is at its floor, as where all groups are constant, and so is z.
template <typename Real>
struct NormStatistics {
    Real *pivot, *mean, *r, *k, *s;
};

// A thread's share of a tensor. Steps that are kept have a slot of their own in shared memory, others share a few.
template <typename V>
struct Tape {
    const V* global;  // of the thread's column, or null for nothing to read
    V* slots;
    int kept;

    __device__ __forceinline__ V* slot(int step) const {
        return slots + (step < kept ? step : kept + step % kDepth) * static_cast<int>(blockDim.x);
    }
    __device__ __forceinline__ void fetch(int step, int place, bool again) const {
        if (!global || (again && step < kept)) return;
        if constexpr (sizeof(V) >= 4) __pipeline_memcpy_async(slot(step), global + place, sizeof(V));
        else *slot(step) = global[place];
    }
    __device__ __forceinline__ auto read(int step) const { return unpacked(*slot(step)); }
};

template <typename Storage, int N, int kSums>
struct NormBlock {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    using V = Vector<Storage, N>;
    using Row = Numbers<Storage, N>;

    const NormCut& cut;
    const std::int64_t sample = blockIdx.x;
    const int chunk = blockIdx.z, tile = blockIdx.y % cut.tiles;
    const int first_group = blockIdx.y / cut.tiles * cut.bundle;
    const int groups = min(cut.bundle, cut.groups - first_group);
    const int first_channel = first_group * cut.width, channels = groups * cut.width;
    // Of the thread: its vector's place in the bundle, its first channel and its group, both counted in the bundle.
    const int row = threadIdx.x / cut.columns;
    const int column = threadIdx.x % cut.columns + tile * cut.columns;
    const bool active = row < cut.rows && column * N < channels;
    const int channel = active ? column * N : 0;
    const int group = channel / cut.width;
    const int pixel = chunk * cut.chunk + row;  // of step 0
    const int last_pixel = min(cut.pixels, (chunk + 1) * cut.chunk);
    const int count = last_pixel - chunk * cut.chunk;
    // Shared memory, from behind the tapes on.
    Real* const rows_of_sums;  // [rows, columns N]
    Real* const totals = rows_of_sums + blockDim.x * N;  // [kSums, bundle channels]
    Real* const scalars = totals + kSums * cut.bundle * cut.width;  // [any, bundle]

    __device__ NormBlock(const NormCut& cut, const NormNeeds& needs)
        : cut(cut), rows_of_sums(reinterpret_cast<Real*>(slot(needs.kept * cut.slots() + needs.passing * kDepth))) {}

    // Where the slots of shared memory begin, of which each has a vector of every thread.
    __device__ __forceinline__ V* slot(int index) const {
        return reinterpret_cast<V*>(cdn_shared) + index * static_cast<int>(blockDim.x);
    }

    // Tell whether this block is the one of its bundle that writes what all of them know.
    __device__ __forceinline__ bool leads() const { return tile == 0 && chunk == 0; }

    // The sample's part of a tensor.
    __device__ __forceinline__ const Element* at(const void* start) const {
        return start ? static_cast<const Element*>(start) + sample * cut.channels * cut.pixels : nullptr;
    }
    // The vectors of the thread's column.
    __device__ __forceinline__ const V* vectors(const void* start) const {
        return start ? reinterpret_cast<const V*>(at(start) + first_channel + channel) : nullptr;
    }
    __device__ __forceinline__ V* vectors(void* start) const {
        return const_cast<V*>(vectors(static_cast<const void*>(start)));
    }
    // The tape of the i-th tensor that both halves of a sweep read, and of the one that one of them does.
    __device__ __forceinline__ Tape<V> kept_tape(const void* start, int i) const {
        return {vectors(start), slot(i * cut.slots()) + threadIdx.x, cut.kept};
    }
    __device__ __forceinline__ Tape<V> passing_tape(const void* start, int kept_tapes) const {
        return {vectors(start), slot(kept_tapes * cut.slots()) + threadIdx.x, 0};
    }

    __device__ __forceinline__ NormStatistics<Real> statistics(void* start) const {
        Real* first = static_cast<Real*>(start) + sample * (4 * cut.groups + 1);
        Real* mine = first + first_group;
        return {mine, mine + cut.groups, mine + 2 * cut.groups, mine + 3 * cut.groups, first + 4 * cut.groups};
    }

    __device__ __forceinline__ Row gains(const void* gain) const {
        Row row;
#pragma unroll
        for (int i = 0; i < N; ++i) row[i] = static_cast<const Real*>(gain)[first_channel + channel + i];
        return row;
    }

    // Call f(step, place of the vector) for the thread's pixels, while what the tapes lack is on its way.
    template <typename F, typename... Tapes>
    __device__ __forceinline__ void walk(bool again, F f, const Tapes&... tapes) const {
        const int vectors = cut.channels / N;
        const auto exists = [&](int step) {
            return active && step < cut.steps && pixel + step * cut.rows < last_pixel;
        };
        const auto place = [&](int step) { return (pixel + step * cut.rows) * vectors; };
        const auto fetch = [&](int step) {
            if (exists(step)) (tapes.fetch(step, place(step), again), ...);
            __pipeline_commit();
        };
        for (int step = 0; step < kDepth - 1; ++step) fetch(step);
        for (int step = 0; step < cut.steps; ++step) {
            fetch(step + kDepth - 1);
            __pipeline_wait_prior(kDepth - 1);
            if (exists(step)) f(step, place(step));
        }
    }

    // Add up the rows of a tile, in a fixed order; the sums of its channels become the k-th totals.
    __device__ __forceinline__ void add_rows(int k, const Row& values) const {
        Real* const mine = rows_of_sums + (row * cut.columns + threadIdx.x % cut.columns) * N;
        const int length = cut.columns * N;
        if (row < cut.rows)
#pragma unroll
            for (int i = 0; i < N; ++i) mine[i] = values[i];
        __syncthreads();
        for (int left = cut.rows, folded; left > 1; left = folded) {
            folded = (left + 3) / 4;
            if (row < folded)
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    Real sum = mine[i];
                    for (int other = folded; row + other < left; other += folded) sum += mine[other * length + i];
                    mine[i] = sum;
                }
            __syncthreads();
        }
        if (active && row == 0)
#pragma unroll
            for (int i = 0; i < N; ++i) totals[k * cut.bundle * cut.width + channel + i] = mine[i];
        __syncthreads();
    }

    __device__ __forceinline__ Real& total(int k, int channel) const {
        return totals[k * cut.bundle * cut.width + channel];
    }
    __device__ __forceinline__ Real& scalar(int k, int group) const { return scalars[k * cut.bundle + group]; }

    // The k-th sum of a channel over a chunk of pixels, in memory.
    __device__ __forceinline__ Real& partial(void* sums, int chunk, int k, int channel) const {
        return static_cast<Real*>(
            sums)[((sample * cut.chunks + chunk) * kSums + k) * cut.channels + first_channel + channel];
    }
    __device__ __forceinline__ void write_partial(void* sums) const {
        if (active && row == 0)
            for (int k = 0; k < kSums; ++k)
                for (int i = 0; i < N; ++i) partial(sums, chunk, k, channel + i) = total(k, channel + i);
    }
    // Add the sums of all chunks up, in their order.
    __device__ __forceinline__ void read_partials(void* sums) const {
        for (int i = threadIdx.x; i < kSums * channels; i += blockDim.x) {
            const int k = i / channels, c = i % channels;
            Real sum = 0;
            for (int other = 0; other < cut.chunks; ++other) sum += partial(sums, other, k, c);
            total(k, c) = sum;
        }
        __syncthreads();
    }

    // Call f(group) for the groups of the bundle, spread over the threads, and let all see what it wrote.
    template <typename F>
    __device__ __forceinline__ void each_group(F f) const {
        for (int g = threadIdx.x; g < groups; g += blockDim.x) f(g);
        __syncthreads();
    }
    // Call f(channel) for the channels of the bundle, spread over the threads.
    template <typename F>
    __device__ __forceinline__ void each_channel(F f) const {
        for (int c = threadIdx.x; c < channels; c += blockDim.x) f(c);
    }
    // Add up value(channel) over a group.
    template <typename F>
    __device__ __forceinline__ Real over_channels(int group, F value) const {
        Real sum = 0;
        for (int c = group * cut.width; c < (group + 1) * cut.width; ++c) sum += value(c);
        return sum;
    }
    // The mean of value(group) over the bundle, found by every warp for itself.
    template <typename F>
    __device__ __forceinline__ Real over_groups(F value) const {
        Real sum = 0;
        for (int g = threadIdx.x % 32; g < groups; g += 32) sum += value(g);
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        return sum / static_cast<Real>(groups);
    }
};

}  // namespace cdn
