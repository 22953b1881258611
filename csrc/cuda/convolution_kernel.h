// The 3x3 convolution of 64 to 64 channels as a product of matrices out of shared memory.
//
// A block stays on its multiprocessor and takes one tile after the other, 8 x 32 pixels of the result. In shared memory
// lie all filters, which it reads once, and the 10 x 34 pixels that each of its tiles depends on. It is two teams of
// four warps with a tile each, which never wait for each other: while one ends its sums with GELU, writes them and
// fetches the next tile, the other multiplies.
//
// A warp multiplies 4 rows of 16 pixels with 64 channels. For one of three columns of taps and 16 channels it reads six
// rows of pixels, which serve three rows of taps, and the filters of these: 6 + 12 reads of 512 bytes for 96 products
// of 16 x 16 x 8. By groups of four warps the filters are read once for all: 9 KiB or 4.5 KiB for 393,216 operations.
// Tensor cores that do 4,096 of them in a cycle take 96 cycles, and shared memory of 128 bytes a cycle 72 or 36. A tile
// has 18.9 million operations; it reads 43.5 KB and writes 33 KB a tensor.
#pragma once

#include <cuda_pipeline.h>

#include "../gelu.h"
#include "instructions.h"

extern __shared__ __align__(1024) unsigned char cdn_shared[];

namespace cdn {

constexpr int kFilterChannels = 64;  // of the images and of the result
constexpr int kTaps = 9;
constexpr int kPixelBytes = 2 * kFilterChannels;
constexpr int kPixelVectors = kPixelBytes / kVectorBytes;
constexpr int kTileRows = 8, kTileColumns = 32;
constexpr int kHaloRows = kTileRows + 2, kHaloColumns = kTileColumns + 2;
constexpr int kWarpRows = 4, kWarpColumns = 16;
constexpr int kTeams = 2;
constexpr int kTeamThreads = kTileRows / kWarpRows * (kTileColumns / kWarpColumns) * 32;
constexpr int kTapBytes = kFilterChannels * kPixelBytes;
constexpr int kFilterBytes = kTaps * kTapBytes;
constexpr int kHaloBytes = kHaloRows * kHaloColumns * kPixelBytes;
constexpr int kConvolutionShared = kFilterBytes + kTeams * kHaloBytes;

struct ConvolutionPass {
    const void *images, *filters, *u, *added;  // the last two may be null
    void *out, *activation, *product;  // some may be null
    int height, width;
    int rows, columns, tiles;  // of an image, counted in tiles; of all images
    bool back;  // the map by the input, from the gradient of the result
};

// Where a tile begins in its image.
struct ConvolutionTile {
    std::int64_t image;
    int row, column;

    __device__ ConvolutionTile(const ConvolutionPass& pass, int tile)
        : image(tile / (pass.rows * pass.columns)), row(tile / pass.columns % pass.rows * kTileRows),
          column(tile % pass.columns * kTileColumns) {}
};

// Rows of eight vectors in shared memory have the vectors in an order that differs between eight rows that follow each
// other, so that the same vector of all eight lies in different banks.
CDN_DEVICE int vector_place(int row, int vector) { return (vector ^ row % kPixelVectors) * kVectorBytes; }

// The result's channels in the order of the sums: the sums of a thread, two of each of 8 x 8, are then those of 8
// channels side by side, twice. Both bits between 2 and 8 change places with both between 8 and 32.
CDN_DEVICE int sum_of_channel(int channel) { return (channel & 0x21) | (channel & 0x06) << 2 | (channel & 0x18) >> 2; }

// Write the filters to shared memory as [tap][sum][channel of the images]; the tap (0, 0) is up and left of a pixel.
// Those of the map by the input are turned and transposed.
template <typename Storage>
CDN_DEVICE void load_filters(const ConvolutionPass& pass) {
    using V = Vector<Storage, kVectorBytes / sizeof(typename Storage::Element)>;
    const V* const filters = static_cast<const V*>(pass.filters);
    if (!pass.back) {
        for (int i = threadIdx.x; i < kTaps * kFilterChannels * kPixelVectors; i += kTeams * kTeamThreads) {
            const int vector = i % kPixelVectors, tap = i / kPixelVectors % kTaps;
            const int sum = sum_of_channel(i / (kPixelVectors * kTaps));
            __pipeline_memcpy_async(cdn_shared + tap * kTapBytes + sum * kPixelBytes + vector_place(sum, vector),
                                    filters + i, kVectorBytes);
        }
        return;
    }
    for (int i = threadIdx.x; i < kTaps * kFilterChannels * kPixelVectors; i += kTeams * kTeamThreads) {
        const int channel = i % kFilterChannels, vector = i / kFilterChannels % kPixelVectors;
        const int tap = i / (kFilterChannels * kPixelVectors);
        const V row = filters[(channel * kTaps + tap) * kPixelVectors + vector];
        constexpr int kWide = sizeof(row.elements) / sizeof(row.elements[0]);
#pragma unroll
        for (int e = 0; e < kWide; ++e) {
            const int sum = sum_of_channel(vector * kWide + e);
            unsigned char* const place =
                cdn_shared + (kTaps - 1 - tap) * kTapBytes + sum * kPixelBytes + vector_place(sum, channel / kWide);
            reinterpret_cast<typename Storage::Element*>(place)[channel % kWide] = row.elements[e];
        }
    }
}

// Copy the pixels that a tile depends on; beyond the image are zeros.
CDN_DEVICE void fetch_halo(const ConvolutionPass& pass, const ConvolutionTile& tile, unsigned char* halo, int thread) {
    const unsigned char* const image =
        static_cast<const unsigned char*>(pass.images) + tile.image * pass.height * pass.width * kPixelBytes;
    const int vector = thread % kPixelVectors;
    for (int pixel = thread / kPixelVectors; pixel < kHaloRows * kHaloColumns; pixel += kTeamThreads / kPixelVectors) {
        const int y = pixel / kHaloColumns, x = pixel % kHaloColumns;
        const int row = tile.row + y - 1, column = tile.column + x - 1;
        const bool inside = 0 <= row && row < pass.height && 0 <= column && column < pass.width;
        const int from = inside ? (row * pass.width + column) * kPixelVectors + vector : 0;
        __pipeline_memcpy_async(halo + pixel * kPixelBytes + vector_place(x, vector),
                                image + std::int64_t{from} * kVectorBytes, kVectorBytes, inside ? 0 : kVectorBytes);
    }
}

using WarpSums = float[kWarpRows][kFilterChannels / 8][4];

// Add the products of a warp's pixels, whose first one's halo begins at an address, with the filters.
template <typename Storage>
CDN_DEVICE void add_products(std::uint32_t pixels, std::uint32_t filters, WarpSums& sums) {
    const int lane = threadIdx.x % 32;
    constexpr int kDeep = 16, kRowBytes = kHaloColumns * kPixelBytes;
    const std::uint32_t pixel_row = pixels + lane % 16 * kPixelBytes;
    const std::uint32_t filter_row = filters + (lane / 16 * 8 + lane % 8) * kPixelBytes;
    const int filter_place = vector_place(lane, lane / 8 % 2);
#pragma unroll 1
    for (int right = 0; right < 3; ++right) {
        const int pixel_place = vector_place(lane + right, lane / 16);
#pragma unroll
        for (int deep = 0; deep < kFilterChannels / kDeep; ++deep) {
            // Steps of two vectors, by the bit that the order of a row's vectors leaves to them.
            const int step = deep * 2 * kVectorBytes;
            std::uint32_t rows[kWarpRows + 2][4];
#pragma unroll
            for (int y = 0; y < kWarpRows + 2; ++y)
                load_matrices(rows[y], pixel_row + right * kPixelBytes + (pixel_place ^ step) + y * kRowBytes);
#pragma unroll
            for (int down = 0; down < 3; ++down) {
#pragma unroll
                for (int n = 0; n < kFilterChannels / 8; n += 2) {
                    std::uint32_t pairs[4];
                    load_matrices(pairs,
                                  filter_row + right * kTapBytes + (filter_place ^ step)
                                      + (down * 3 * kFilterChannels + n * 8) * kPixelBytes);
#pragma unroll
                    for (int y = 0; y < kWarpRows; ++y) {
                        multiply(Storage{}, sums[y][n], rows[y + down], pairs[0], pairs[1]);
                        multiply(Storage{}, sums[y][n + 1], rows[y + down], pairs[2], pairs[3]);
                    }
                }
            }
        }
    }
}

// What describes the filters of a tap, at a multiple of 1024, as a matrix in shared memory: rows of 128 bytes with
// their vectors in the order of vector_place, and every eighth row 1024 bytes on.
CDN_DEVICE std::uint64_t matrix_at(std::uint32_t address) {
    constexpr std::uint64_t kVectorsInPlace = 1;
    return kVectorsInPlace << 62 | std::uint64_t{8 * kPixelBytes / 16} << 32 | (address & 0x3ffff) / 16;
}

// The same by groups of four warps, which read filters out of shared memory once for all of them.
template <typename Storage>
CDN_DEVICE void add_products_of_group(std::uint32_t pixels, std::uint32_t filters, WarpSums& sums) {
    const int lane = threadIdx.x % 32;
    constexpr int kDeep = 16, kSteps = kFilterChannels / kDeep, kRowBytes = kHaloColumns * kPixelBytes;
    const std::uint32_t pixel_row = pixels + lane % 16 * kPixelBytes;
    const std::uint64_t matrix = matrix_at(filters);
    std::uint32_t rows[2][kWarpRows + 2][4];
    const auto read = [&](int step) {
        const int right = step / kSteps, place = vector_place(lane + right, lane / 16);
#pragma unroll
        for (int y = 0; y < kWarpRows + 2; ++y)
            load_matrices(rows[step % 2][y],
                          pixel_row + right * kPixelBytes + (place ^ step % kSteps * 2 * kVectorBytes) + y * kRowBytes);
    };
    read(0);
    settle(sums);
#pragma unroll
    for (int step = 0; step < 3 * kSteps; ++step) {
        begin_products();
#pragma unroll
        for (int down = 0; down < 3; ++down) {
            const int filter = (down * 3 + step / kSteps) * kTapBytes + step % kSteps * 2 * kVectorBytes;
#pragma unroll
            for (int y = 0; y < kWarpRows; ++y)
                start_product(Storage{}, sums[y], rows[step % 2][y + down], matrix + filter / 16);
        }
        end_products();
        if (step + 1 == 3 * kSteps) break;
        wait_for_products<1>();
        read(step + 1);
    }
    wait_for_products<0>();
    settle(sums);
}

// Write the sums, phi'(u) sums + added, and the GELU of what that was rounded to. Row and column are those of the warp.
template <typename Storage>
CDN_DEVICE void finish(const ConvolutionPass& pass, std::int64_t image, int row, int column, WarpSums& sums) {
    constexpr int kWide = kVectorBytes / sizeof(typename Storage::Element);
    using V = Vector<Storage, kWide>;
    using Row = Numbers<Storage, kWide>;
    const int lane = threadIdx.x % 32;
    // Code for one row of the warp, for which the sums of the others move up.
#pragma unroll 1
    for (int y = 0; y < kWarpRows && row + y < pass.height; ++y) {
        const std::int64_t first = (image * pass.height + row + y) * pass.width;
        std::int64_t places[4];
        bool exist[4];
        V slopes[4], others[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int x = column + lane / 4 + i / 2 * 8;
            exist[i] = x < pass.width;
            places[i] = (first + x) * kPixelVectors + i % 2 * 4 + lane % 4;
            if (exist[i] && pass.u) slopes[i] = static_cast<const V*>(pass.u)[places[i]];
            if (exist[i] && pass.added) others[i] = static_cast<const V*>(pass.added)[places[i]];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            Row values;
#pragma unroll
            for (int e = 0; e < kWide; ++e) values[e] = sums[0][i % 2 * 4 + e / 2][i / 2 * 2 + e % 2];
            if (!exist[i]) continue;
            if (pass.product) static_cast<V*>(pass.product)[places[i]] = packed(values);
            if (pass.u) {
                const Row u = unpacked(slopes[i]);
#pragma unroll
                for (int e = 0; e < kWide; ++e) values[e] *= gelu<Storage::brief>(u[e]).first;
            }
            if (pass.added) {
                const Row other = unpacked(others[i]);
#pragma unroll
                for (int e = 0; e < kWide; ++e) values[e] += other[e];
            }
            const V rounded = packed(values);
            if (pass.out) static_cast<V*>(pass.out)[places[i]] = rounded;
            if (pass.activation) {
                Row u = unpacked(rounded);
#pragma unroll
                for (int e = 0; e < kWide; ++e) u[e] = gelu<Storage::brief>(u[e]).value;
                static_cast<V*>(pass.activation)[places[i]] = packed(u);
            }
        }
#pragma unroll
        for (int above = 0; above + 1 < kWarpRows; ++above)
#pragma unroll
            for (int n = 0; n < kFilterChannels / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[above][n][i] = sums[above + 1][n][i];
    }
}

template <typename Storage>
__global__ void __launch_bounds__(kTeams* kTeamThreads, 1) convolution(const ConvolutionPass pass) {
    // The same in all lanes, as the compiler sees only by the shuffle; only then do products of groups overlap.
    const int team = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kTeamThreads, 0);
    const int thread = threadIdx.x % kTeamThreads, warp = thread / 32;
    const int row = warp / 2 * kWarpRows, column = warp % 2 * kWarpColumns;
    unsigned char* const halo = cdn_shared + kFilterBytes + team * kHaloBytes;
    const std::uint32_t pixels = shared_address(halo + (row * kHaloColumns + column) * kPixelBytes);
    const int step = kTeams * static_cast<int>(gridDim.x);
    int index = team * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);

    load_filters<Storage>(pass);
    if (index < pass.tiles) fetch_halo(pass, ConvolutionTile(pass, index), halo, thread);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    if (has_groups()) show_to_products();
    __syncthreads();
    while (index < pass.tiles) {
        const ConvolutionTile tile(pass, index);
        WarpSums sums = {};
        if (has_groups()) add_products_of_group<Storage>(pixels, shared_address(cdn_shared), sums);
        else add_products<Storage>(pixels, shared_address(cdn_shared), sums);
        wait_for_team(1 + team, kTeamThreads);
        index += step;
        if (index < pass.tiles) fetch_halo(pass, ConvolutionTile(pass, index), halo, thread);
        __pipeline_commit();
        finish<Storage>(pass, tile.image, tile.row + row, tile.column + column, sums);
        __pipeline_wait_prior(0);
        wait_for_team(1 + team, kTeamThreads);
    }
}

}  // namespace cdn
