// The passes of GELU, whose order of differentiation is the sweep, and their C interface.
#include "../gelu.h"
#include "launch.h"
#include "storage.h"

namespace cdn {

constexpr int kGeluThreads = 128;
constexpr int kGeluAhead = 2;  // vectors of a thread, all read before the first is computed with

struct GeluPass {
    const void *u, *grad, *other;
    void *out, *tangent_out;
    std::int64_t first, last;  // vectors that are meant: [first, last)
};

template <typename Storage, int N, int kSweep>
__global__ void __launch_bounds__(kGeluThreads, 1) gelu_pass(const GeluPass pass) {
    using V = Vector<Storage, N>;
    const std::int64_t first = pass.first + std::int64_t{blockIdx.x} * (kGeluThreads * kGeluAhead) + threadIdx.x;
    const auto place = [&](int i) { return first + i * kGeluThreads; };
    V u[kGeluAhead]{}, grad[kGeluAhead]{}, other[kGeluAhead]{};
#pragma unroll
    for (int i = 0; i < kGeluAhead; ++i) {
        if (place(i) >= pass.last) break;
        u[i] = static_cast<const V*>(pass.u)[place(i)];
        if constexpr (kSweep != CDN_FORWARD) {
            grad[i] = static_cast<const V*>(pass.grad)[place(i)];
            if (kSweep == CDN_TANGENT || pass.other) other[i] = static_cast<const V*>(pass.other)[place(i)];
        }
    }
#pragma unroll
    for (int i = 0; i < kGeluAhead; ++i) {
        if (place(i) >= pass.last) break;
        const auto x = unpacked(u[i]), g = unpacked(grad[i]), more = unpacked(other[i]);
        Numbers<Storage, N> out, tangent;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const auto phi = gelu<Storage::brief>(x[k]);
            if constexpr (kSweep == CDN_FORWARD) {
                out[k] = phi.value;
            } else if constexpr (kSweep == CDN_BACKWARD) {
                out[k] = phi.first * g[k] + more[k];
            } else {
                tangent[k] = phi.first * more[k];
                out[k] = phi.second * (g[k] * more[k]);
            }
        }
        static_cast<V*>(pass.out)[place(i)] = packed(out);
        if constexpr (kSweep == CDN_TANGENT) static_cast<V*>(pass.tangent_out)[place(i)] = packed(tangent);
    }
}

namespace {

template <typename Storage, int N>
constexpr void (*kGeluSweeps[])(GeluPass) = {gelu_pass<Storage, N, CDN_FORWARD>, gelu_pass<Storage, N, CDN_BACKWARD>,
                                             gelu_pass<Storage, N, CDN_TANGENT>};

template <typename Storage, int N>
int run_gelu(int sweep, GeluPass pass, std::int64_t first, std::int64_t last, void* stream) {
    pass.first = first / N, pass.last = last / N;
    constexpr int kOfBlock = kGeluThreads * kGeluAhead;
    const std::int64_t blocks = (pass.last - pass.first + kOfBlock - 1) / kOfBlock;
    if (blocks > kMostBlocks) return kTooLarge;
    return blocks
        ? launch(kGeluSweeps<Storage, N>[sweep], dim3(static_cast<unsigned>(blocks)), kGeluThreads, 0, stream, pass)
        : 0;
}

}  // namespace
}  // namespace cdn

// Not all of cdn: its log and exp would stand beside those of CUDA.
using cdn::GeluPass, cdn::kRefused, cdn::run_gelu, cdn::with_storage;

int cdn_cuda_gelu(int sweep, const void* u, const void* grad, const void* other, void* out, void* tangent_out, int type,
                  std::int64_t size, void* stream) {
    if (sweep < CDN_FORWARD || sweep > CDN_TANGENT || size < 0) return kRefused;
    const GeluPass pass{u, grad, other, out, tangent_out, 0, 0};
    return with_storage(type, kRefused, [&](auto storage) {
        using Storage = decltype(storage);
        constexpr int wide = cdn::kVector<Storage>;
        const bool vectors = cdn::aligned(cdn::kVectorBytes, u, grad, other, out, tangent_out);
        const std::int64_t whole = vectors ? size / wide * wide : 0;
        const int status = run_gelu<Storage, wide>(sweep, pass, 0, whole, stream);
        return status ? status : run_gelu<Storage, 1>(sweep, pass, whole, size, stream);
    });
}
