// Instructions that CUDA C++ has no functions for. All GPUs from compute capability 8.0 know them, except for those of
// groups of four warps, which only 9.0 has.
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
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(row)
                 : "memory");
}

// sums += a b of a 16 x 16 and a 16 x 8 matrix, summed in float. a is what load_matrices reads of its upper left, lower
// left, upper right and lower right quarter; b of the upper and lower half of its transpose. Lane i has of the sums
// columns 2 (i % 4) and the next of row i / 4, and of row i / 4 + 8.
#define CDN_MULTIPLY(type)                                           \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "        \
        "{%0, %1, %2, %3};"                                          \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
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

// Whether there are products by groups of four warps, whose first is a multiple of four.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
CDN_DEVICE constexpr bool has_groups() { return true; }
#else
CDN_DEVICE constexpr bool has_groups() { return false; }
#endif

// Start to add a b to the sums of four warps, each of which has 16 rows of a and of the sums as for multiply, and
// columns 8 i to 8 i + 7 in sums[i]. b has 64 columns and 16 rows, and is described as a matrix in shared memory with
// columns and rows exchanged. Neither sums nor a may be touched until wait_for_products.
#define CDN_SUMS(i) "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
#define CDN_START_PRODUCT(type)                                                                                     \
    asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type    \
                 " "                                                                                                \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
                 "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;}"  \
                 : CDN_SUMS(0), CDN_SUMS(1), CDN_SUMS(2), CDN_SUMS(3), CDN_SUMS(4), CDN_SUMS(5), CDN_SUMS(6),       \
                   CDN_SUMS(7)                                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(matrix))
CDN_DEVICE void start_product(Bfloat16, float (&sums)[8][4], const std::uint32_t (&a)[4], std::uint64_t matrix) {
    CDN_START_PRODUCT("bf16");
}
CDN_DEVICE void start_product(Float16, float (&sums)[8][4], const std::uint32_t (&a)[4], std::uint64_t matrix) {
    CDN_START_PRODUCT("f16");
}
#undef CDN_START_PRODUCT

// Have sums in their registers now, before products start or after they are waited for: no earlier and no later.
template <int kCount>
CDN_DEVICE void settle(float (&all)[kCount][8][4]) {
#pragma unroll
    for (auto& sums : all)
#pragma unroll
        for (int i = 0; i < 8; ++i) asm volatile("" : CDN_SUMS(i));
}
#undef CDN_SUMS

// Before the first product that is started after a thread wrote its a or sums; and after the last of a set.
CDN_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
CDN_DEVICE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait for all sets of products but the last few.
template <int kSets>
CDN_DEVICE void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kSets) : "memory");
}
// Let products read what this thread wrote to shared memory, once the block has waited for it.
CDN_DEVICE void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Wait for count threads of the block, whole warps, that name the same barrier from 1 to 15.
CDN_DEVICE void wait_for_team(int barrier, int count) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(count) : "memory");
}

}  // namespace cdn

#endif
