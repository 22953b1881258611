// How elements are stored on a GPU: alone or in vectors of up to 16 bytes, converted with the instructions of the chip.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../api.h"
#include "../math.h"

#define CDN_DEVICE static __device__ __forceinline__

namespace cdn {

template <typename Float>
struct Whole {
    using Real = Float;
    using Element = Float;
    static constexpr bool brief = false;
    CDN_DEVICE Real load(Element a) { return a; }
    CDN_DEVICE Element store(Real a) { return a; }
};

// What has 16 bits, which Pair converts two at a time, the first in the lower half.
template <typename Pair>
struct Half {
    using Real = float;
    using Element = std::uint16_t;
    static constexpr bool brief = true;
    CDN_DEVICE Real load(Element a) { return Pair::load(a).x; }
    CDN_DEVICE Element store(Real a) { return static_cast<Element>(Pair::store(a, 0)); }
};

struct Bfloat16Pair {
    CDN_DEVICE float2 load(std::uint32_t pair) {
        return {bit_cast<float>(pair << 16), bit_cast<float>(pair & 0xffff0000u)};
    }
    CDN_DEVICE std::uint32_t store(float first, float second) {
        return bit_cast<std::uint32_t>(__floats2bfloat162_rn(first, second));
    }
};

struct Float16Pair {
    CDN_DEVICE float2 load(std::uint32_t pair) { return __half22float2(bit_cast<__half2>(pair)); }
    CDN_DEVICE std::uint32_t store(float first, float second) {
        return bit_cast<std::uint32_t>(__floats2half2_rn(first, second));
    }
};

using Float32 = Whole<float>;
using Float64 = Whole<double>;
using Bfloat16 = Half<Bfloat16Pair>;
using Float16 = Half<Float16Pair>;

constexpr int kVectorBytes = 16;
template <typename Storage>
constexpr int kVector = kVectorBytes / sizeof(typename Storage::Element);  // elements of the widest access

// N elements side by side, read and written by one instruction.
template <typename Storage, int N>
struct alignas(N * sizeof(typename Storage::Element)) Vector {
    typename Storage::Element elements[N];
};

template <typename Storage, int N>
struct Numbers {
    typename Storage::Real values[N];

    __device__ __forceinline__ auto& operator[](int i) { return values[i]; }
    __device__ __forceinline__ auto operator[](int i) const { return values[i]; }
};

template <typename Float, int N>
CDN_DEVICE Numbers<Whole<Float>, N> unpacked(const Vector<Whole<Float>, N>& vector) {
    return bit_cast<Numbers<Whole<Float>, N>>(vector);
}

template <typename Float, int N>
CDN_DEVICE Vector<Whole<Float>, N> packed(const Numbers<Whole<Float>, N>& numbers) {
    return bit_cast<Vector<Whole<Float>, N>>(numbers);
}

template <typename Pair, int N>
CDN_DEVICE Numbers<Half<Pair>, N> unpacked(const Vector<Half<Pair>, N>& vector) {
    Numbers<Half<Pair>, N> numbers;
    if constexpr (N == 1) {
        numbers[0] = Half<Pair>::load(vector.elements[0]);
    } else {
        struct Words {
            std::uint32_t words[N / 2];
        };
        const Words pairs = bit_cast<Words>(vector);
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float2 two = Pair::load(pairs.words[i]);
            numbers[2 * i] = two.x, numbers[2 * i + 1] = two.y;
        }
    }
    return numbers;
}

template <typename Pair, int N>
CDN_DEVICE Vector<Half<Pair>, N> packed(const Numbers<Half<Pair>, N>& numbers) {
    if constexpr (N == 1) {
        return {{Half<Pair>::store(numbers[0])}};
    } else {
        struct Words {
            std::uint32_t words[N / 2];
        } pairs;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) pairs.words[i] = Pair::store(numbers[2 * i], numbers[2 * i + 1]);
        return bit_cast<Vector<Half<Pair>, N>>(pairs);
    }
}

// Call f with the storage of a cdn_type, on the host; return what it returns, or refused for any other type.
template <typename Result, typename F>
Result with_storage(int type, Result refused, F f) {
    switch (type) {
        case CDN_FLOAT32: return f(Float32{});
        case CDN_FLOAT64: return f(Float64{});
        case CDN_BFLOAT16: return f(Bfloat16{});
        case CDN_FLOAT16: return f(Float16{});
    }
    return refused;
}

}  // namespace cdn
