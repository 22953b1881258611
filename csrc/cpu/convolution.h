// Bias-free convolutions of images stored channels last: direct ones of bfloat16, on the processor's matrix or
// dot-product units, and those by minimal filtering.
#pragma once

#include <cstdint>

#include "../api.h"

namespace cdn {

// Static, as all that variants share: each needs code of its own.
static inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
static inline std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }

constexpr std::int64_t kLargestFilter = 7;

// y = w * x, [batch, height, width, inputs] to [batch, ceil(height / stride), ceil(width / stride), outputs], with
// zero padding of size / 2; filters are [outputs, size, size, inputs]. See cdn_conv2d.
struct ConvolutionJob {
    int kind, type;
    const void *first, *second;  // forward: x, w; input: the gradient of y, w; weight: x, the gradient of y
    void* out;                   // y; the gradient of x; the gradient of w
    void* activation;            // forward: null, or where phi(y) goes; then out may be null
    const void *u, *added;       // input: null, or what makes phi'(u) p + added of the gradient p of x
    void* product;               // input: null, or where p goes
    std::int64_t sourced;        // how many images, from the first on, have something added
    std::int64_t batch, height, width, inputs, outputs, size, stride;

    std::int64_t padding() const { return size / 2; }
    std::int64_t taps() const { return size * size; }
    std::int64_t out_height() const { return divide_up(height, stride); }
    std::int64_t out_width() const { return divide_up(width, stride); }
};

// A convolution runs in three stages with barriers between them, each cut into units that can run in any order on any
// thread: to pack what all units share, to multiply, and to add up. How it is cut may depend on the number of threads,
// the order of summation of an element does not.
struct ConvolutionPlan {
    std::int64_t pack_units, multiply_units, add_units;
    std::int64_t shared, scratch;  // bytes of workspace, common and for every thread; both will be aligned to 64
};

struct ConvolutionKernels {
    std::int64_t serial;  // below so many products, waking a second thread costs more than it saves
    bool (*takes)(const ConvolutionJob&);
    ConvolutionPlan (*plan)(const ConvolutionJob&, int threads);
    // Run units first .. last of stage 0, 1 or 2.
    void (*run)(const ConvolutionJob&, int threads, int stage, void* shared, void* scratch, std::int64_t first,
                std::int64_t last);
};

namespace portable { extern const ConvolutionKernels convolution; }
namespace avx512bf16 { extern const ConvolutionKernels convolution; }
namespace amx { extern const ConvolutionKernels convolution; }
namespace amx_emulated { extern const ConvolutionKernels convolution; }
namespace scalar { extern const ConvolutionKernels winograd, float32; }
namespace avx2 { extern const ConvolutionKernels winograd, float32; }
namespace avx512 { extern const ConvolutionKernels winograd, float32; }
namespace avx512bf16 { extern const ConvolutionKernels winograd; }

}  // namespace cdn
