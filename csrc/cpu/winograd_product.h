// The products of minimal filtering, one matrix product for each frequency.
#pragma once

#include "ahead.h"
#include "winograd_schemes.h"

namespace cdn::CDN_VARIANT {
namespace {

// A block of results that fills the registers: 24 of 32 with AVX-512, 12 of 16 else, beside a few operands.
constexpr int kRows = 6;
#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
template <typename Real>
constexpr std::int64_t kPanel = kVectors * kWide<Real>;  // columns of a block

// Where the elements of c += a b lie, as distances between neighbours; neighbouring columns have distance 1.
struct Distances {
    std::int64_t a_row, a_inner, b_inner, c_row;
};

// All that is wanted next.
class Wanted {
public:
    template <typename Element>
    void add(Element* first, Element* last, std::int64_t steps) {
        if (first < last) places_[count_++] = Ahead(first, last, steps);
    }
    void fetch() {
        for (int i = 0; i < count_; ++i) places_[i].fetch();
    }

private:
    Ahead places_[6];  // a next image; two results, a pre-activation, what is added and a product
    int count_ = 0;
};

template <typename Real, int rows, int vectors>
CDN_HOST_DEVICE void multiply_block(const Real* a, const Real* b, Real* c, std::int64_t inner, Distances d, bool add) {
    Wide<Real> sums[rows][vectors];
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
            sums[i][v] = add ? read<Wide<Real>>(c + i * d.c_row + v * kWide<Real>) : Wide<Real>{};
    for (std::int64_t k = 0; k < inner; ++k, a += d.a_inner, b += d.b_inner) {
        Wide<Real> right[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) right[v] = read<Wide<Real>>(b + v * kWide<Real>);
#pragma GCC unroll 6
        for (int i = 0; i < rows; ++i) {
            const Wide<Real> left = all(a[i * d.a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sums[i][v] = multiply_add(left, right[v], sums[i][v]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) write(c + i * d.c_row + v * kWide<Real>, sums[i][v]);
}

// c[rows, columns] = a[rows, inner] b[inner, columns], or added to it, for any number of rows and at most a panel of
// columns; c and b have whole vectors of columns.
template <typename Real, int vectors>
void multiply_rows(const Real* a, const Real* b, Real* c, std::int64_t rows, std::int64_t inner, Distances d, bool add,
                   Wanted& wanted) {
    for (; rows >= kRows; rows -= kRows, a += kRows * d.a_row, c += kRows * d.c_row) {
        wanted.fetch();
        if (add)  // sums of many rows come from farther away
            for (int i = 0; i < kRows; ++i)
                for (int v = 0; v < vectors; ++v) __builtin_prefetch(c + (kRows + i) * d.c_row + v * kWide<Real>, 1, 3);
        multiply_block<Real, kRows, vectors>(a, b, c, inner, d, add);
    }
    switch (rows) {
        case 1: return multiply_block<Real, 1, vectors>(a, b, c, inner, d, add);
        case 2: return multiply_block<Real, 2, vectors>(a, b, c, inner, d, add);
        case 3: return multiply_block<Real, 3, vectors>(a, b, c, inner, d, add);
        case 4: return multiply_block<Real, 4, vectors>(a, b, c, inner, d, add);
        case 5: return multiply_block<Real, 5, vectors>(a, b, c, inner, d, add);
    }
}

template <typename Real>
void multiply(const Real* a, const Real* b, Real* c, std::int64_t rows, std::int64_t inner, std::int64_t columns,
              Distances d, bool add, Wanted& wanted) {
    static_assert(kVectors == 2 || kVectors == 4);
    switch ((columns + kWide<Real> - 1) / kWide<Real>) {
        case 1: return multiply_rows<Real, 1>(a, b, c, rows, inner, d, add, wanted);
        case 2: return multiply_rows<Real, 2>(a, b, c, rows, inner, d, add, wanted);
        case 3: return multiply_rows<Real, kVectors == 4 ? 3 : 2>(a, b, c, rows, inner, d, add, wanted);
        default: return multiply_rows<Real, kVectors>(a, b, c, rows, inner, d, add, wanted);
    }
}

}  // namespace
}  // namespace cdn::CDN_VARIANT
