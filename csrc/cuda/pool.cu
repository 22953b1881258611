// Reductions over the pixels or over all values of a sample, their adjoints, and their C interface.
//
// Every one of them is about columns that vectors stand in. Where channels are last and stay apart, a column has N
// channels of a sample, and a row for each pixel. Otherwise a column is a run of memory, a sample or a channel of one,
// and the elements of a vector belong together.
#include <algorithm>

#include "../gelu.h"
#include "launch.h"
#include "storage.h"
#include "sums.h"

extern __shared__ __align__(16) unsigned char cdn_shared[];

namespace cdn {

constexpr int kPoolThreads = 128;
constexpr int kPoolAhead = 4;   // vectors of a tensor that a thread reads before it computes
constexpr int kPoolSteps = 32;  // rows of a thread, at most
constexpr int kPoolSide = 16;   // columns side by side, at least, where that is how memory is read in order

struct PoolCut {
    int columns, rows;  // in all
    int neighbors;      // columns whose rows alternate in memory: those of a sample, or one for runs
    int side, deep;     // columns and rows that a block takes at once
    int parts;          // blocks that share a column, each with steps of deep rows
    int steps;
    double pixels;
};

struct PoolPass {
    const void *a, *b;
    void *values, *out;
    double* partial;  // sums of parts, [values, parts]
    PoolCut cut;
};

inline PoolCut cut_pool(std::int64_t columns, std::int64_t rows, int neighbors, std::int64_t pixels) {
    PoolCut cut{static_cast<int>(columns), static_cast<int>(rows), neighbors};
    const int deepest = static_cast<int>(std::clamp<std::int64_t>(rows, 1, kPoolThreads));
    cut.side = std::max(kPoolThreads / deepest, std::min(neighbors, kPoolSide));
    cut.deep = std::min(deepest, kPoolThreads / cut.side);
    const int steps = std::max(1, (cut.rows + cut.deep - 1) / cut.deep);
    cut.parts = (steps + kPoolSteps - 1) / kPoolSteps;
    cut.steps = (steps + cut.parts - 1) / cut.parts;
    cut.pixels = static_cast<double>(pixels);
    return cut;
}

// Where a thread stands: its column, and its rows.
struct PoolPlace {
    const PoolCut& cut;
    const int part = blockIdx.x % cut.parts;
    // Neighbors in memory go to neighboring threads.
    const bool along = cut.neighbors == 1;
    const int thread = threadIdx.x;
    const int depth = along ? thread % cut.deep : thread / cut.side;
    const int beside = along ? thread / cut.deep : thread % cut.side;
    const int column = blockIdx.x / cut.parts * cut.side + beside;
    const bool active = depth < cut.deep && beside < cut.side && column < cut.columns;
    const int first = part * cut.steps * cut.deep + depth;
    const std::int64_t start = std::int64_t{column / cut.neighbors} * cut.rows * cut.neighbors + column % cut.neighbors;

    __device__ explicit PoolPlace(const PoolCut& cut) : cut(cut) {}

    __device__ __forceinline__ bool exists(int step) const {
        return active && step < cut.steps && first + step * cut.deep < cut.rows;
    }
    __device__ __forceinline__ std::int64_t at(int step) const {
        return start + std::int64_t{first + step * cut.deep} * cut.neighbors;
    }
};

// values = the sums of a, or of a b, over the pixels of columns, and over the elements of a vector for runs.
template <typename Storage, int N, bool kRuns>
__global__ void __launch_bounds__(kPoolThreads, 1) pool_sum(const PoolPass pass) {
    using Real = typename Storage::Real;
    using V = Vector<Storage, N>;
    constexpr int kOwn = kRuns ? 1 : N;  // values of a column
    const PoolCut& cut = pass.cut;
    const PoolPlace place(cut);
    const V *const as = static_cast<const V*>(pass.a), *const bs = static_cast<const V*>(pass.b);
    Numbers<Storage, N> sums{};
    for (int step = 0; step < cut.steps; step += kPoolAhead) {
        V a[kPoolAhead]{}, b[kPoolAhead]{};
#pragma unroll
        for (int i = 0; i < kPoolAhead; ++i) {
            if (!place.exists(step + i)) continue;
            a[i] = as[place.at(step + i)];
            if (bs) b[i] = bs[place.at(step + i)];
        }
#pragma unroll
        for (int i = 0; i < kPoolAhead; ++i) {
            const auto x = unpacked(a[i]), y = unpacked(b[i]);
#pragma unroll
            for (int k = 0; k < N; ++k) sums[k] = multiply_add(x[k], bs ? y[k] : Real(1), sums[k]);
        }
    }

    // A thread has few terms; sums of threads are added in double, in a fixed order.
    double own[kOwn] = {};
#pragma unroll
    for (int k = 0; k < N; ++k) own[kRuns ? 0 : k] += sums[k];
    double* const of_threads = reinterpret_cast<double*>(cdn_shared);
    const auto slot = [&](int depth) { return of_threads + (depth * cut.side + place.beside) * kOwn; };
    if (place.depth < cut.deep && place.beside < cut.side)
#pragma unroll
        for (int k = 0; k < kOwn; ++k) slot(place.depth)[k] = own[k];
    __syncthreads();
    for (int left = cut.deep, half; left > 1; left = half) {
        half = (left + 1) / 2;
        if (place.depth + half < left && place.beside < cut.side)
#pragma unroll
            for (int k = 0; k < kOwn; ++k) slot(place.depth)[k] += slot(place.depth + half)[k];
        __syncthreads();
    }
    if (!place.active || place.depth > 0) return;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
        const std::int64_t value = std::int64_t{place.column} * kOwn + k;
        const double sum = slot(0)[k];
        if (cut.parts > 1) pass.partial[value * cut.parts + place.part] = sum;
        else static_cast<Real*>(pass.values)[value] = static_cast<Real>(sum / cut.pixels);
    }
}

// out = values / pixels, or a times that.
template <typename Storage, int N, bool kRuns>
__global__ void __launch_bounds__(kPoolThreads, 1) pool_write(const PoolPass pass) {
    using Real = typename Storage::Real;
    using V = Vector<Storage, N>;
    const PoolCut& cut = pass.cut;
    const PoolPlace place(cut);
    if (!place.active) return;
    const V* const as = static_cast<const V*>(pass.a);
    const Real* const values = static_cast<const Real*>(pass.values) + std::int64_t{place.column} * (kRuns ? 1 : N);
    Numbers<Storage, N> factor;
#pragma unroll
    for (int k = 0; k < N; ++k) factor[k] = values[kRuns ? 0 : k] / static_cast<Real>(cut.pixels);
    for (int step = 0; step < cut.steps; step += kPoolAhead) {
        V a[kPoolAhead]{};
#pragma unroll
        for (int i = 0; i < kPoolAhead; ++i)
            if (as && place.exists(step + i)) a[i] = as[place.at(step + i)];
#pragma unroll
        for (int i = 0; i < kPoolAhead; ++i) {
            if (!place.exists(step + i)) continue;
            auto x = unpacked(a[i]);
#pragma unroll
            for (int k = 0; k < N; ++k) x[k] = as ? x[k] * factor[k] : factor[k];
            static_cast<V*>(pass.out)[place.at(step + i)] = packed(x);
        }
    }
}

namespace {

struct PoolShape {
    int kind;
    std::int64_t batch, channels, pixels;
    bool channels_last;

    // Whether columns are runs of memory, and their elements.
    bool of_samples() const { return kind == CDN_DOT || kind == CDN_SCALE; }
    bool runs() const { return of_samples() || !channels_last; }
    std::int64_t length() const { return of_samples() ? channels * pixels : pixels; }
    std::int64_t values() const { return of_samples() ? batch : batch * channels; }

    int refused() const {
        if (kind < CDN_DOT || kind > CDN_SPREAD || batch < 0 || channels < 0 || pixels < 1) return kRefused;
        return channels >= kMostValues / pixels || values() >= kMostValues ? kTooLarge : 0;
    }
    bool fits(int vector) const { return (runs() ? length() : channels) % vector == 0; }
    PoolCut cut(int vector) const {
        return runs() ? cut_pool(values(), length() / vector, 1, pixels)
                      : cut_pool(values() / vector, pixels, static_cast<int>(channels / vector), pixels);
    }
    std::int64_t workspace(int vector) const {
        const int parts = cut(vector).parts;
        const bool sums = kind == CDN_DOT || kind == CDN_MEAN;
        return sums && parts > 1 ? values() * parts * static_cast<std::int64_t>(sizeof(double)) : 0;
    }
};

template <typename Storage, int N, bool kRuns>
int run_pool(const PoolShape& shape, PoolPass pass, void* stream) {
    pass.cut = shape.cut(N);
    const PoolCut& cut = pass.cut;
    const std::int64_t blocks = std::int64_t{(cut.columns + cut.side - 1) / cut.side} * cut.parts;
    if (blocks > kMostBlocks) return kTooLarge;
    const dim3 where(static_cast<unsigned>(blocks));
    if (shape.kind == CDN_SCALE || shape.kind == CDN_SPREAD)
        return launch(pool_write<Storage, N, kRuns>, where, kPoolThreads, 0, stream, pass);
    if (cut.parts > 1 && !pass.partial) return kRefused;
    const int shared = kPoolThreads * (kRuns ? 1 : N) * sizeof(double);
    const int status = launch(pool_sum<Storage, N, kRuns>, where, kPoolThreads, shared, stream, pass);
    if (status || cut.parts == 1) return status;
    return add_parts(pass.partial, pass.values, sizeof(typename Storage::Real) == 8, shape.values(), cut.parts,
                     cut.pixels, stream);
}

}  // namespace
}  // namespace cdn

// Not all of cdn: its log and exp would stand beside those of CUDA.
using cdn::kRefused, cdn::PoolPass, cdn::PoolShape, cdn::run_pool, cdn::with_storage;

int cdn_cuda_pool(int kind, const void* a, const void* b, void* values, void* out, int type, std::int64_t batch,
                  std::int64_t channels, std::int64_t pixels, int channels_last, void* workspace, void* stream) {
    const PoolShape shape{kind, batch, channels, pixels, channels_last != 0};
    const int refused = shape.refused();
    if (refused || shape.values() == 0) return refused;
    const PoolPass pass{a, b, values, out, static_cast<double*>(workspace)};
    return with_storage(type, kRefused, [&](auto storage) {
        using Storage = decltype(storage);
        constexpr int wide = cdn::kVector<Storage>;
        const bool vectors = shape.fits(wide) && cdn::aligned(cdn::kVectorBytes, a, b, out);
        const auto run = [&](auto runs) {
            return vectors ? run_pool<Storage, wide, runs.value>(shape, pass, stream)
                           : run_pool<Storage, 1, runs.value>(shape, pass, stream);
        };
        return shape.runs() ? run(std::true_type{}) : run(std::false_type{});
    });
}

std::int64_t cdn_cuda_pool_workspace(int kind, int type, std::int64_t batch, std::int64_t channels, std::int64_t pixels,
                                     int channels_last) {
    const PoolShape shape{kind, batch, channels, pixels, channels_last != 0};
    if (const int refused = shape.refused()) return refused;
    // Whichever way the tensors turn out to be aligned.
    return with_storage(type, std::int64_t{kRefused}, [&](auto storage) {
        constexpr int wide = cdn::kVector<decltype(storage)>;
        return std::max(shape.workspace(1), shape.fits(wide) ? shape.workspace(wide) : 0);
    });
}
