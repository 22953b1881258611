// The C interface of residual + GELU + group normalization.
#include "launch.h"
#include "norm_sweeps.h"

namespace cdn {
namespace {

template <typename Storage, int N>
constexpr void (*kSweeps[])(NormPass) = {norm_forward<Storage, N>, norm_backward<Storage, N>, norm_tangent<Storage, N>};

struct Shape {
    int sweep;
    std::int64_t batch, channels, pixels, groups;
    bool coupled;

    int refused() const {
        if (sweep < CDN_FORWARD || sweep > CDN_TANGENT || batch < 0 || channels < 1 || pixels < 1) return kRefused;
        if (groups < 1 || channels % groups) return kRefused;
        return batch > kMostBlocks || channels >= kMostValues / pixels ? kTooLarge : 0;
    }

    template <typename Storage>
    NormPlan plan(int vector) const {
        const NormPlace place{attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                              attribute(cudaDevAttrMultiProcessorCount), sizeof(typename Storage::Element), vector,
                              sizeof(typename Storage::Real)};
        return plan_norm(kNormNeeds[sweep], place, batch, static_cast<int>(channels), static_cast<int>(pixels),
                         static_cast<int>(groups), coupled);
    }
};

// Double is there to check derivatives with.
template <typename Storage>
constexpr int kWide = sizeof(typename Storage::Element) > 4 ? 1 : kVector<Storage>;

template <typename Storage, int N>
int run(const Shape& shape, NormPass pass, void* stream) {
    const NormPlan plan = shape.plan<Storage>(N);
    if (!plan.threads) return kTooLarge;
    const auto kernel = kSweeps<Storage, N>[shape.sweep];
    const dim3 all(shape.batch, plan.bundles * plan.cut.tiles, plan.cut.chunks);
    if (all.y > 65535) return kTooLarge;
    pass.cut = plan.cut;
    if (plan.whole()) {
        pass.phase = kWholePass;
        return launch(kernel, all, plan.threads, plan.shared, stream, pass);
    }
    if (!pass.sums) return kRefused;
    pass.phase = kSumPass;
    const int status = launch(kernel, all, plan.threads, plan.shared, stream, pass);
    pass.phase = kWritePass;
    return status ? status : launch(kernel, all, plan.threads, plan.shared, stream, pass);
}

}  // namespace
}  // namespace cdn

// Not all of cdn: its log and exp would stand beside those of CUDA.
using cdn::kRefused, cdn::NormPass, cdn::Shape, cdn::with_storage;

int cdn_cuda_gelu_norm(int sweep, const void* x, const void* residual, const void* gain, const void* grad,
                       const void* source, const void* tangent, void* statistics, void* sum, void* out,
                       void* tangent_out, void* gain_grad, int type, std::int64_t batch, std::int64_t channels,
                       std::int64_t pixels, std::int64_t groups, double eps, int scale_preserving, void* workspace,
                       void* stream) {
    const Shape shape{sweep, batch, channels, pixels, groups, scale_preserving != 0};
    const int refused = eps > 0 ? shape.refused() : kRefused;
    if (refused || batch == 0) return refused;
    const NormPass pass{x,   residual, gain,        grad,      source,    tangent, statistics,
                        sum, out,      tangent_out, gain_grad, workspace, eps};
    return with_storage(type, kRefused, [&](auto storage) {
        using Storage = decltype(storage);
        constexpr int wide = cdn::kWide<Storage>;
        const bool vectors = channels / groups % wide == 0
            && cdn::aligned(cdn::kVectorBytes, x, residual, grad, source, tangent, sum, out, tangent_out);
        return vectors ? cdn::run<Storage, wide>(shape, pass, stream) : cdn::run<Storage, 1>(shape, pass, stream);
    });
}

std::int64_t cdn_cuda_gelu_norm_workspace(int sweep, int type, std::int64_t batch, std::int64_t channels,
                                          std::int64_t pixels, std::int64_t groups, int scale_preserving) {
    const Shape shape{sweep, batch, channels, pixels, groups, scale_preserving != 0};
    if (const int refused = shape.refused()) return refused;
    // Whichever way the tensors turn out to be aligned.
    return with_storage(type, std::int64_t{kRefused}, [&](auto storage) {
        using Storage = decltype(storage);
        const auto narrow = shape.plan<Storage>(1);
        if (channels / groups % cdn::kWide<Storage>) return narrow.workspace;
        return std::max(narrow.workspace, shape.plan<Storage>(cdn::kWide<Storage>).workspace);
    });
}
