// In place of csrc/cuda/instructions.h, whose guard this has: what those instructions do, by the threads of a warp.
//
// Harsher than a GPU: an address that is not a multiple of 16 bytes, or not in shared memory, is an error, and products
// of groups happen as late as they may or else at once.
#ifndef CDN_INSTRUCTIONS
#define CDN_INSTRUCTIONS

#include <functional>

#include "storage.h"

extern unsigned char cdn_shared[];

namespace emulation {

const unsigned char* row_in_shared_memory(std::uint32_t address);
const unsigned char* row_of_matrix(std::uint64_t matrix, int row, int vector);
bool has_groups();
void start_product(std::function<void()> product);
void begin_products();
void end_products();
void wait_for_products(int sets);
void show_to_products();

}  // namespace emulation

namespace cdn {

CDN_DEVICE std::uint32_t shared_address(const void* address) {
    return static_cast<std::uint32_t>(static_cast<const unsigned char*>(address) - cdn_shared);
}

inline void load_matrices(std::uint32_t (&pairs)[4], std::uint32_t row) {
    const emulation::Deposits rows(&row, sizeof(row));
    const int lane = threadIdx.x % 32;
    for (int matrix = 0; matrix < 4; ++matrix)
        std::memcpy(&pairs[matrix],
                    emulation::row_in_shared_memory(rows.of<std::uint32_t>(matrix * 8 + lane / 4)) + lane % 4 * 4, 4);
}

template <typename Storage>
void numbers_of(std::uint32_t pair, float* two) {
    for (int i = 0; i < 2; ++i) two[i] = Storage::load(static_cast<typename Storage::Element>(pair >> 16 * i));
}

template <typename Storage>
void multiply(Storage, float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t upper, std::uint32_t lower) {
    struct Operands {
        float a[4][2], b[2][2];
    } mine;
    for (int i = 0; i < 4; ++i) numbers_of<Storage>(a[i], mine.a[i]);
    numbers_of<Storage>(upper, mine.b[0]), numbers_of<Storage>(lower, mine.b[1]);
    const emulation::Deposits all(&mine, sizeof(mine));
    const int lane = threadIdx.x % 32, row = lane / 4 * 4, column = lane % 4 * 8;
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 4; ++i) {
            const Operands &left = all.of<Operands>(row + i), &first = all.of<Operands>(column + i),
                           &second = all.of<Operands>(column + 4 + i);
            for (int k = 0; k < 2; ++k) {
                sums[0] += left.a[2 * half][k] * first.b[half][k];
                sums[1] += left.a[2 * half][k] * second.b[half][k];
                sums[2] += left.a[2 * half + 1][k] * first.b[half][k];
                sums[3] += left.a[2 * half + 1][k] * second.b[half][k];
            }
        }
}

inline bool has_groups() { return emulation::has_groups(); }

// Lanes show each other their share of a, and each of b two columns.
template <typename Storage>
void product_of_group(float (&sums)[8][4], const std::uint32_t (&a)[4], std::uint64_t matrix) {
    struct Operands {
        float a[4][2], b[2][16];
    } mine;
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) numbers_of<Storage>(a[i], mine.a[i]);
    for (int i = 0; i < 2; ++i)
        for (int half = 0; half < 2; ++half) {
            std::uint32_t pairs[4];
            std::memcpy(pairs, emulation::row_of_matrix(matrix, 2 * lane + i, half), 16);
            for (int k = 0; k < 4; ++k) numbers_of<Storage>(pairs[k], mine.b[i] + 8 * half + 2 * k);
        }
    const emulation::Deposits all(&mine, sizeof(mine));
    float rows[2][16];
    for (int k = 0; k < 16; ++k)
        for (int i = 0; i < 2; ++i) rows[i][k] = all.of<Operands>(lane / 4 * 4 + k % 8 / 2).a[k / 8 * 2 + i][k % 2];
    for (int i = 0; i < 8; ++i)
        for (int e = 0; e < 2; ++e) {
            const float* const column = all.of<Operands>(i * 4 + lane % 4).b[e];
            float upper = sums[i][e], lower = sums[i][2 + e];
            for (int k = 0; k < 16; ++k) upper += rows[0][k] * column[k], lower += rows[1][k] * column[k];
            sums[i][e] = upper, sums[i][2 + e] = lower;
        }
}

template <typename Storage>
void start_product(Storage, float (&sums)[8][4], const std::uint32_t (&a)[4], std::uint64_t matrix) {
    emulation::start_product([&sums, &a, matrix] { product_of_group<Storage>(sums, a, matrix); });
}

template <int kCount>
void settle(float (&)[kCount][8][4]) {}
inline void begin_products() { emulation::begin_products(); }
inline void end_products() { emulation::end_products(); }
template <int kSets>
void wait_for_products() {
    emulation::wait_for_products(kSets);
}
inline void show_to_products() { emulation::show_to_products(); }

inline void wait_for_team(int barrier, int count) { emulation::wait_for_team(barrier, count); }

}  // namespace cdn

#endif
