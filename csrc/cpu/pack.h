// Packs: a few vectors of floats, as wide as the processor that a file is compiled for, computed with as one number.
//
// The vectors of a pack do not wait for each other, which hides how long an operation takes, and they share what is
// loaded for them: constants, coefficients of channels, sums. Compilers vectorize loops over numbers by themselves, but
// with more instructions: for conversions of 16 bits, for minima, and for what could be shared. Functions of packs are
// those of gelu.h, and give the same bits.
#pragma once

#include "../gelu.h"
#include "lanes.h"
#include "storage.h"

namespace cdn::CDN_VARIANT {
namespace {

using Vector = float __attribute__((vector_size(4 * kLanes)));
using Integers = std::int32_t __attribute__((vector_size(4 * kLanes)));

#ifdef __AVX512F__
constexpr int kParts = 4;
#else
constexpr int kParts = 2;  // what 16 registers hold
#endif
// With vectors of 4, what compilers make of loops is no slower.
constexpr bool kPacks = kLanes > 4;

#define CDN_EACH_PART _Pragma("GCC unroll 4") for (int i = 0; i < kParts; ++i)

struct Pack {
    Vector part[kParts];

    Pack() = default;
    Pack(Vector all) { CDN_EACH_PART part[i] = all; }
    Pack(float all) : Pack(all - Vector{}) {}
};

CDN_HOST_DEVICE Pack operator+(Pack a, Pack b) {
    CDN_EACH_PART a.part[i] += b.part[i];
    return a;
}
CDN_HOST_DEVICE Pack operator-(Pack a, Pack b) {
    CDN_EACH_PART a.part[i] -= b.part[i];
    return a;
}
CDN_HOST_DEVICE Pack operator*(Pack a, Pack b) {
    CDN_EACH_PART a.part[i] *= b.part[i];
    return a;
}
CDN_HOST_DEVICE Pack operator/(Pack a, Pack b) {
    CDN_EACH_PART a.part[i] /= b.part[i];
    return a;
}
CDN_HOST_DEVICE Pack operator-(Pack a) {
    CDN_EACH_PART a.part[i] = -a.part[i];
    return a;
}

using cdn::multiply_add;
CDN_HOST_DEVICE Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    for (int i = 0; i < kLanes; ++i) c[i] = cdn::multiply_add(a[i], b[i], c[i]);
    return c;
#endif
}
CDN_HOST_DEVICE Pack multiply_add(Pack a, Pack b, Pack c) {
    CDN_EACH_PART c.part[i] = multiply_add(a.part[i], b.part[i], c.part[i]);
    return c;
}

CDN_HOST_DEVICE float farthest(Pack) { return cdn::farthest(0.0f); }
CDN_HOST_DEVICE Pack magnitude(Pack u) {
    CDN_EACH_PART u.part[i] = (Vector)((Integers)u.part[i] & 0x7fffffff);
    return u;
}
// Floats without a sign order like the integers with the same bits, which have an instruction for the minimum where
// floats with NaN have two. NaN becomes the limit.
CDN_HOST_DEVICE Pack at_most(Pack a, float limit) {
    const Integers most = (Integers)(limit - Vector{});
    CDN_EACH_PART {
        const Integers bits = (Integers)a.part[i];
        a.part[i] = (Vector)(bits < most ? bits : most);
    }
    return a;
}
CDN_HOST_DEVICE Pack positive_part(Pack u) {
    CDN_EACH_PART {
        const Integers bits = (Integers)u.part[i];
        u.part[i] = (Vector)(bits > Integers{} ? bits : Integers{});
    }
    return u;
}
CDN_HOST_DEVICE Pack by_sign(Pack u, Pack negative, Pack positive) {
    CDN_EACH_PART u.part[i] = (Integers)u.part[i] < Integers{} ? negative.part[i] : positive.part[i];
    return u;
}
CDN_HOST_DEVICE Pack halve(Pack a, Pack times) {
    CDN_EACH_PART a.part[i] = (Vector)((Lanes)a.part[i] - ((Lanes)times.part[i] << 23));
    return a;
}

template <typename T>
CDN_HOST_DEVICE T read(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
}
template <typename T>
CDN_HOST_DEVICE void write(void* to, T value) {
    std::memcpy(to, &value, sizeof(T));
}

// Vectors in memory, of the types whose conversion is a few instructions; `exists` tells which.
template <typename Storage>
struct Vectors {
    static constexpr bool exists = false;
};

template <>
struct Vectors<Float32> {
    static constexpr bool exists = kPacks;
    static Vector load(const float* from) { return read<Vector>(from); }
    static void store(float* to, Vector v) { write(to, v); }
};

template <>
struct Vectors<Bfloat16> {
    static constexpr bool exists = kPacks;
    using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));

    static Vector load(const std::uint16_t* from) {
#if defined(__AVX512F__)
        const Lanes wide = (Lanes)_mm512_maskz_cvtepu16_epi32(0xFFFF, read<__m256i>(from));
#elif defined(__AVX2__)
        const Lanes wide = (Lanes)_mm256_cvtepu16_epi32(read<__m128i>(from));
#else
        const Lanes wide = __builtin_convertvector(read<Halves>(from), Lanes);
#endif
        return (Vector)(wide << 16);
    }
    static void store(std::uint16_t* to, Vector v) {
#if defined(__AVX512BF16__)
        write(to, _mm512_cvtneps_pbh(v));  // numbers below the smallest normal one become 0
#else
        const Lanes bits = (Lanes)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        write(to, __builtin_convertvector(v == v ? rounded : Lanes{} + 0x7fc0, Halves));
#endif
    }
};

#if defined(__AVX512F__)
template <>
struct Vectors<Float16> {
    static constexpr bool exists = kPacks;
    // With a mask, for without GCC 12 warns wrongly.
    static Vector load(const std::uint16_t* from) { return _mm512_maskz_cvtph_ps(0xFFFF, read<__m256i>(from)); }
    static void store(std::uint16_t* to, Vector v) {
        write(to, _mm512_maskz_cvtps_ph(0xFFFF, v, _MM_FROUND_TO_NEAREST_INT));
    }
};
#endif

}  // namespace
}  // namespace cdn::CDN_VARIANT
