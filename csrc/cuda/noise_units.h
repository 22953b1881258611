// What a thread of the noise kernels draws and where it lies in memory.
//
// Four normals come from one counter, and are neighbours in C order. So a thread takes whole vectors of an image in C
// order; of colours stored channels last, as many pixels as fill whole vectors with their three channels; and otherwise
// four elements, wherever they lie.
#pragma once

#include "storage.h"

namespace cdn {

enum NoiseLayout { kScattered = 0, kInOrder = 1, kColours = 3 };

// A key whose offset is read on the GPU, so that a recorded launch draws anew whenever someone writes another there.
struct StoredKey {
    std::uint64_t seed;
    const std::int64_t* offset;

    __device__ __forceinline__ operator Key() const { return {seed, static_cast<std::uint64_t>(*offset)}; }
};

struct NoiseImage {
    int size, channels;  // channels: of an image stored channels last, or 1
    StoredKey key;
    Places places;
};

template <typename Real>
CDN_DEVICE void four_normals(std::uint32_t block, std::uint32_t place, Key key, Real (&out)[4]) {
    const auto w = philox(block, place, key, kNormalStream);
    box_muller(w.w0, w.w1, out[0], out[1]);
    box_muller(w.w2, w.w3, out[2], out[3]);
}

// kLayout channels of kPixels pixels, in vectors of N.
template <typename Storage, NoiseLayout kLayout>
struct NoiseUnit {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    static constexpr int N = kVector<Storage>, kPixels = N < 4 ? 4 : N, kCount = kLayout * kPixels;

    const NoiseImage& of;
    const int index;

    static bool fits(const NoiseImage& of) { return of.channels == kLayout && of.size / kLayout % kPixels == 0; }
    __device__ __forceinline__ bool exists(int) const { return true; }
    CDN_HOST_DEVICE int units(const NoiseImage& of) { return of.size / kCount; }

    __device__ __forceinline__ void draw(std::uint32_t place, Real (&eps)[kCount]) const {
#pragma unroll
        for (int channel = 0; channel < kLayout; ++channel) {
#pragma unroll
            for (int pixel = 0; pixel < kPixels; pixel += 4) {
                Real four[4];
                four_normals((channel * (of.size / kLayout) + index * kPixels + pixel) / 4, place, of.key, four);
#pragma unroll
                for (int i = 0; i < 4; ++i) eps[(pixel + i) * kLayout + channel] = four[i];
            }
        }
    }
    __device__ __forceinline__ void read(const Element* image, Real (&values)[kCount]) const {
#pragma unroll
        for (int first = 0; first < kCount; first += N) {
            const auto numbers = unpacked(*reinterpret_cast<const Vector<Storage, N>*>(image + index * kCount + first));
#pragma unroll
            for (int i = 0; i < N; ++i) values[first + i] = numbers[i];
        }
    }
    __device__ __forceinline__ void write(Element* image, const Real (&values)[kCount]) const {
#pragma unroll
        for (int first = 0; first < kCount; first += N) {
            Numbers<Storage, N> numbers;
#pragma unroll
            for (int i = 0; i < N; ++i) numbers[i] = values[first + i];
            *reinterpret_cast<Vector<Storage, N>*>(image + index * kCount + first) = packed(numbers);
        }
    }
};

template <typename Storage>
struct NoiseUnit<Storage, kScattered> {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;
    static constexpr int kCount = 4;

    const NoiseImage& of;
    const int index;

    CDN_HOST_DEVICE int units(const NoiseImage& of) { return (of.size + kCount - 1) / kCount; }

    __device__ __forceinline__ bool exists(int i) const { return kCount * index + i < of.size; }
    __device__ __forceinline__ int place(int i) const {
        const int element = kCount * index + i, pixels = of.size / of.channels;
        return element % pixels * of.channels + element / pixels;
    }
    __device__ __forceinline__ void draw(std::uint32_t place, Real (&eps)[kCount]) const {
        four_normals(index, place, of.key, eps);
    }
    __device__ __forceinline__ void read(const Element* image, Real (&values)[kCount]) const {
        for (int i = 0; i < kCount; ++i) values[i] = exists(i) ? Storage::load(image[place(i)]) : Real(0);
    }
    __device__ __forceinline__ void write(Element* image, const Real (&values)[kCount]) const {
        for (int i = 0; i < kCount; ++i)
            if (exists(i)) image[place(i)] = Storage::store(values[i]);
    }
};

}  // namespace cdn
