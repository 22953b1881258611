// Which variants this processor runs. Compiled without processor flags, like everything that is no variant.
#include "dispatch.h"

#include <cstdlib>
#include <cstring>
#include <string>

#ifdef CDN_X86
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using namespace cdn;

// What bfloat16 instructions the processor has, whether or not they can be used.
struct Bfloat16Units {
    bool avx512 = false, amx_tile = false, amx = false;

    Bfloat16Units() {
#ifdef CDN_X86
        unsigned a, b, c, d, b1, c1, d1, more = 0;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        if (a >= 1) __cpuid_count(7, 1, more, b1, c1, d1);
        avx512 = more >> 5 & 1;
        amx_tile = d >> 24 & 1;
        amx = d >> 22 & 1;
#endif
    }
};

// The best capability of the processor.
int supported() {
#ifdef CDN_X86
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CDN_SCALAR;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl"))
        return Bfloat16Units().avx512 ? CDN_AVX512_BFLOAT16 : CDN_AVX512;
    return CDN_AVX2;
#endif
    return CDN_SCALAR;
}

// Tell whether the environment's CDN_CPU_CAPABILITY names a capability.
bool asked_for(int capability) {
    const char* names[] = {"scalar", "avx2", "avx512", "avx512_bf16"};
    const char* wanted = std::getenv("CDN_CPU_CAPABILITY");
    return wanted && std::strcmp(wanted, names[capability]) == 0;
}

int choose() {
    const int best = supported();
    for (int capability = 0; capability < best; ++capability)
        if (asked_for(capability)) return capability;
    return best;
}

// Ask the operating system for the tiles of AMX, whose state it has to save; once for the process.
bool permitted_tiles() {
#if defined(CDN_X86) && defined(__linux__) && defined(SYS_arch_prctl)
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

bool has_engine(int engine) {
    static const int best = supported();
    static const Bfloat16Units units;
    switch (engine) {
        case CDN_PORTABLE:
        case CDN_AMX_EMULATED:
        case CDN_FLOAT32_SCALAR:
        case CDN_WINOGRAD_SCALAR: return true;
        case CDN_FLOAT32_AVX2:
        case CDN_WINOGRAD_AVX2: return best >= CDN_AVX2;
        case CDN_FLOAT32_AVX512:
        case CDN_WINOGRAD_AVX512: return best >= CDN_AVX512;
        case CDN_WINOGRAD_AVX512_BF16: return best == CDN_AVX512_BFLOAT16;
        case CDN_AVX512_BF16: return best == CDN_AVX512_BFLOAT16;
        case CDN_AMX: {
            static const bool usable = units.amx_tile && units.amx && best == CDN_AVX512_BFLOAT16 && permitted_tiles();
            return usable;
        }
    }
    return false;
}

std::string features() {
    std::string found;
#ifdef CDN_X86
    const auto add = [&](bool has, const char* name) {
        if (has) found += (found.empty() ? "" : " ") + std::string(name);
    };
    const Bfloat16Units units;
    add(__builtin_cpu_is("intel"), "intel");
    add(__builtin_cpu_is("amd"), "amd");
    add(__builtin_cpu_supports("avx2"), "avx2");
    add(__builtin_cpu_supports("fma"), "fma");
    add(__builtin_cpu_supports("avx512f"), "avx512f");
    add(__builtin_cpu_supports("avx512bw"), "avx512bw");
    add(units.avx512, "avx512_bf16");
    add(units.amx_tile, "amx_tile");
    add(units.amx, "amx_bf16");
#elif defined(__ARM_NEON)
    found = "neon, which the scalar kernels are compiled for";
#endif
    return found;
}

}  // namespace

const Variant* cdn::find(int capability) {
    static const int best = supported();
    static const Variant variants[] = {
        {&scalar::noise, &scalar::passes},
#ifdef CDN_X86
        {&avx2::noise, &avx2::passes},
        {&avx512::noise, &avx512::passes},
        {&avx512::noise, &avx512bf16::passes},
#endif
    };
    return capability < 0 || capability > best ? nullptr : &variants[capability];
}

const ConvolutionKernels* cdn::find_engine(int engine) {
    if (!has_engine(engine)) return nullptr;
    switch (engine) {
        case CDN_PORTABLE: return &portable::convolution;
        case CDN_AMX_EMULATED: return &amx_emulated::convolution;
        case CDN_FLOAT32_SCALAR: return &scalar::float32;
        case CDN_WINOGRAD_SCALAR: return &scalar::winograd;
#ifdef CDN_X86
        case CDN_FLOAT32_AVX2: return &avx2::float32;
        case CDN_FLOAT32_AVX512: return &avx512::float32;
        case CDN_WINOGRAD_AVX2: return &avx2::winograd;
        case CDN_WINOGRAD_AVX512: return &avx512::winograd;
        case CDN_WINOGRAD_AVX512_BF16: return &avx512bf16::winograd;
        case CDN_AVX512_BF16: return &avx512bf16::convolution;
        case CDN_AMX: return &amx::convolution;
#endif
    }
    return nullptr;
}

int cdn_interface() { return CDN_INTERFACE; }

int cdn_capability() {
    static const int capability = choose();
    return capability;
}

int cdn_conv_engine() {
    // All capabilities are without engines, so asking for one excludes them.
    static const bool excluded =
        asked_for(CDN_AVX512) || asked_for(CDN_AVX512_BFLOAT16) || cdn_capability() < CDN_AVX512;
    static const int engine = excluded ? CDN_NO_ENGINE
        : has_engine(CDN_AMX)          ? CDN_AMX
        : has_engine(CDN_AVX512_BF16)  ? CDN_AVX512_BF16
                                       : CDN_NO_ENGINE;
    return engine;
}

const char* cdn_build() {
    static const std::string build = std::string(
#ifdef __clang__
        "Clang " __clang_version__
#else
        "GCC " __VERSION__
#endif
    );
    return build.c_str();
}

const char* cdn_features() {
    static const std::string found = features();
    return found.c_str();
}
