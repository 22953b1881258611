// Instructions that CUDA C++ has no functions for, in the form that all GPUs from compute capability 8.0 know.
//
// The guard is a name: what imitates a GPU on a processor (tests/kernels/cuda_emulation) brings its own.
#ifndef CDN_INSTRUCTIONS
#define CDN_INSTRUCTIONS

#include "storage.h"

namespace cdn {

// An address in the shared memory of a block, in bytes.
CDN_DEVICE std::uint32_t shared_address(const void* address) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(address));
}

// Read four matrices of 8 x 8 numbers of 16 bits. Lane i names the address of row i % 8 of matrix i / 8, and gets of
// each matrix columns 2 (i % 4) and the next of row i / 4.
CDN_DEVICE void load_matrices(std::uint32_t (&pairs)[4], std::uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3]) : "r"(row) : "memory");
}

// sums += a b of a 16 x 16 and a 16 x 8 matrix, summed in float. a is what load_matrices reads of its upper left, lower
// left, upper right and lower right quarter; b of the upper and lower half of its transpose. Lane i has of the sums
// columns 2 (i % 4) and the next of row i / 4, and of row i / 4 + 8.
#define CDN_MULTIPLY(type)                                                                                       \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
        "{%0, %1, %2, %3};"                                                                                      \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                              \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(upper), "r"(lower))
CDN_DEVICE void multiply(Bfloat16, float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t upper,
                         std::uint32_t lower) {
    CDN_MULTIPLY("bf16");
}
CDN_DEVICE void multiply(Float16, float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t upper,
                         std::uint32_t lower) {
    CDN_MULTIPLY("f16");
}
#undef CDN_MULTIPLY

// Wait for count threads of the block, whole warps, that name the same barrier from 1 to 15.
CDN_DEVICE void wait_for_team(int barrier, int count) {
    asm volatile("bar.sync %0, %1;" :: "r"(barrier), "r"(count) : "memory");
}

}  // namespace cdn

#endif
