// The C interface of the convolution.
#include <algorithm>

#include "convolution_kernel.h"
#include "launch.h"

namespace cdn {
namespace {

// What an image has in tiles of a size.
std::int64_t tiles_of(std::int64_t pixels, int tile) { return (pixels + tile - 1) / tile; }

}  // namespace
}  // namespace cdn

// Not all of cdn: its log and exp would stand beside those of CUDA.
using cdn::aligned, cdn::ConvolutionPass, cdn::kConvolutionShared, cdn::kMostBlocks, cdn::kMostValues, cdn::kNoKernel,
    cdn::kRefused, cdn::kTeams, cdn::kTeamThreads, cdn::kTooLarge, cdn::tiles_of;

int cdn_cuda_conv2d_refuses(int kind, int type, std::int64_t batch, std::int64_t height, std::int64_t width,
                            std::int64_t inputs, std::int64_t outputs, std::int64_t size, std::int64_t stride) {
    if (kind < CDN_CONV_FORWARD || kind > CDN_CONV_WEIGHT || batch < 0 || height < 1 || width < 1) return kRefused;
    const bool ours = kind != CDN_CONV_WEIGHT && (type == CDN_BFLOAT16 || type == CDN_FLOAT16) && size == 3
        && stride == 1 && inputs == cdn::kFilterChannels && outputs == cdn::kFilterChannels;
    if (!ours || cdn::attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) < kConvolutionShared) return kNoKernel;
    if (height >= kMostValues / cdn::kFilterChannels / width) return kTooLarge;
    const std::int64_t tiles = tiles_of(height, cdn::kTileRows) * tiles_of(width, cdn::kTileColumns);
    // As many again as there are blocks may be counted beyond the last.
    return batch >= kMostBlocks / 2 / tiles ? kTooLarge : 0;
}

int cdn_cuda_conv2d(int kind, const void* first, const void* second, const void* u, const void* added, void* out,
                    void* activation, void* product, int type, std::int64_t batch, std::int64_t height,
                    std::int64_t width, std::int64_t inputs, std::int64_t outputs, std::int64_t size,
                    std::int64_t stride, void* stream) {
    if (const int status = cdn_cuda_conv2d_refuses(kind, type, batch, height, width, inputs, outputs, size, stride))
        return status;
    if (!aligned(cdn::kVectorBytes, first, second, u, added, out, activation, product)) return kRefused;
    if (batch == 0) return 0;
    ConvolutionPass pass{
        first, second, u, added, out, activation, product, static_cast<int>(height), static_cast<int>(width)};
    pass.rows = static_cast<int>(tiles_of(height, cdn::kTileRows));
    pass.columns = static_cast<int>(tiles_of(width, cdn::kTileColumns));
    pass.tiles = static_cast<int>(batch) * pass.rows * pass.columns;
    pass.back = kind == CDN_CONV_INPUT;
    const dim3 blocks(std::min(pass.tiles, std::max(cdn::attribute(cudaDevAttrMultiProcessorCount), 1)));
    const auto kernel = type == CDN_BFLOAT16 ? cdn::convolution<cdn::Bfloat16> : cdn::convolution<cdn::Float16>;
    return cdn::launch(kernel, blocks, kTeams * kTeamThreads, kConvolutionShared, stream, pass);
}
