// The C interface of the convolutions.
#include <cstdlib>

#include "dispatch.h"

#ifdef CDN_X86
#include <xmmintrin.h>
#endif

using namespace cdn;

namespace {

// Memory that lives on between the calls of a thread: fresh buffers of megabytes cost page faults at every call.
class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    ~Workspace() { std::free(memory_); }

    // At least so many bytes, a multiple of 64, aligned to 64, with any content; null if there are none.
    char* take(std::int64_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            memory_ = static_cast<char*>(std::aligned_alloc(64, static_cast<std::size_t>(bytes)));
            size_ = memory_ ? bytes : 0;
        }
        return memory_;
    }

private:
    char* memory_ = nullptr;
    std::int64_t size_ = 0;
};

// While it lives, subnormal numbers count as zeros on this thread, unless they are of float64. The tails of GELU and of
// its slope are full of them, and x86 takes some 150 cycles for each product; its units for bfloat16 do the same.
class NoSubnormals {
#ifdef CDN_X86
public:
    explicit NoSubnormals(int type) { _mm_setcsr(type == CDN_FLOAT64 ? before_ : before_ | kFlush); }
    NoSubnormals(const NoSubnormals&) = delete;
    ~NoSubnormals() { _mm_setcsr(before_); }

private:
    static constexpr unsigned kFlush = 0x8040;  // of results and of operands
    const unsigned before_ = _mm_getcsr();
#else
public:
    explicit NoSubnormals(int) {}
#endif
};

}  // namespace

int cdn_conv2d(int kind, const void* first, const void* second, void* out, void* activation, const void* u,
               const void* added, void* product, int type, std::int64_t sourced, std::int64_t batch,
               std::int64_t height, std::int64_t width, std::int64_t inputs, std::int64_t outputs, std::int64_t size,
               std::int64_t stride, int threads, int engine) {
    const ConvolutionKernels* kernels = find_engine(engine);
    if (!kernels || kind < CDN_CONV_FORWARD || kind > CDN_CONV_WEIGHT || threads < 1) return 1;
    if (type < CDN_FLOAT32 || type > CDN_FLOAT16) return 1;
    if (batch < 1 || height < 1 || width < 1 || inputs < 1 || outputs < 1 || stride < 1) return 1;
    if (sourced < 0 || sourced > batch) return 1;
    if (size < 1 || size > kLargestFilter || size % 2 == 0) return 1;
    if (kind != CDN_CONV_FORWARD && (activation || !out)) return 1;
    if (kind != CDN_CONV_INPUT && (u || added || product)) return 1;
    if (!out && !activation) return 1;
    const ConvolutionJob job{kind,    type,  first,  second, out,    activation, u,    added, product,
                             sourced, batch, height, width,  inputs, outputs,    size, stride};
    if (!kernels->takes(job)) return 1;
    if (batch * job.out_height() * job.out_width() * inputs * outputs * job.taps() < kernels->serial) threads = 1;
    const ConvolutionPlan plan = kernels->plan(job, threads);
    const std::int64_t shared = round_up(plan.shared, 64), scratch = round_up(plan.scratch, 64);
    static thread_local Workspace workspace;
    char* memory = workspace.take(shared + threads * scratch);
    if (!memory) return 2;
    const std::int64_t units[] = {plan.pack_units, plan.multiply_units, plan.add_units};
    for (int stage = 0; stage < 3; ++stage)
        if (units[stage] > 0)
            split_parts(units[stage], threads, [&](int part, std::int64_t begin, std::int64_t end) {
                const NoSubnormals guard(type);
                kernels->run(job, threads, stage, memory, memory + shared + part * scratch, begin, end);
            });
    return 0;
}
