// In place of csrc/cuda/instructions.h, whose guard this has: what those instructions do, by the threads of a warp.
//
// Harsher than a GPU: an address that is not a multiple of 16 bytes, or not in shared memory, is an error.
#ifndef CDN_INSTRUCTIONS
#define CDN_INSTRUCTIONS

#include "storage.h"

extern unsigned char cdn_shared[];

namespace emulation {

const unsigned char* row_in_shared_memory(std::uint32_t address);

}  // namespace emulation

namespace cdn {

CDN_DEVICE std::uint32_t shared_address(const void* address) {
    return static_cast<std::uint32_t>(static_cast<const unsigned char*>(address) - cdn_shared);
}

inline void load_matrices(std::uint32_t (&pairs)[4], std::uint32_t row) {
    const emulation::Deposits rows(&row, sizeof(row));
    const int lane = threadIdx.x % 32;
    for (int matrix = 0; matrix < 4; ++matrix)
        std::memcpy(&pairs[matrix], emulation::row_in_shared_memory(rows.of<std::uint32_t>(matrix * 8 + lane / 4))
                                        + lane % 4 * 4, 4);
}

template <typename Storage>
void multiply(Storage, float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t upper, std::uint32_t lower) {
    struct Operands { float a[4][2], b[2][2]; } mine;
    const auto numbers = [](std::uint32_t pair, float (&two)[2]) {
        for (int i = 0; i < 2; ++i) two[i] = Storage::load(static_cast<typename Storage::Element>(pair >> 16 * i));
    };
    for (int i = 0; i < 4; ++i) numbers(a[i], mine.a[i]);
    numbers(upper, mine.b[0]), numbers(lower, mine.b[1]);
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

inline void wait_for_team(int barrier, int count) { emulation::wait_for_team(barrier, count); }

}  // namespace cdn

#endif
