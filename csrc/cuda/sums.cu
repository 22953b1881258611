// Adding up what blocks of threads have found: the second launch of a sum.
#include "sums.h"

#include "launch.h"

namespace cdn {

constexpr int kSumThreads = 128;

template <typename Real>
__global__ void __launch_bounds__(kSumThreads, 1)
    sum_of_parts(const double* partial, Real* values, std::int64_t count, int parts, double divisor) {
    const std::int64_t i = std::int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
    if (i >= count) return;
    double sum = 0;
    for (int part = 0; part < parts; ++part) sum += partial[i * parts + part];
    values[i] = static_cast<Real>(sum / divisor);
}

int add_parts(const double* partial, void* values, bool is_double, std::int64_t count, int parts, double divisor,
              void* stream) {
    const dim3 blocks(static_cast<unsigned>((count + kSumThreads - 1) / kSumThreads));
    const auto run = [&](auto kernel, auto* values) {
        return launch(kernel, blocks, kSumThreads, 0, stream, partial, values, count, parts, divisor);
    };
    return is_double ? run(sum_of_parts<double>, static_cast<double*>(values))
                     : run(sum_of_parts<float>, static_cast<float*>(values));
}

}  // namespace cdn
