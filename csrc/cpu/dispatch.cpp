// Which variants this processor runs. Compiled without processor flags, like everything that is no variant.
#include "dispatch.h"

#include <cstdlib>
#include <cstring>
#include <string>

#ifdef CDN_X86
#include <cpuid.h>
#endif

namespace {

using namespace cdn;

int supported() {
#ifdef CDN_X86
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CDN_SCALAR;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return CDN_AVX512;
    return CDN_AVX2;
#endif
    return CDN_SCALAR;
}

int choose() {
    const char* names[] = {"scalar", "avx2", "avx512"};
    const int best = supported();
    if (const char* wanted = std::getenv("CDN_CPU_CAPABILITY"))
        for (int capability = 0; capability < best; ++capability)
            if (std::strcmp(wanted, names[capability]) == 0) return capability;
    return best;
}

std::string features() {
    std::string found;
#ifdef CDN_X86
    const auto add = [&](bool has, const char* name) {
        if (has) found += (found.empty() ? "" : " ") + std::string(name);
    };
    unsigned a, b, c, d, b1, c1, d1, more = 0;
    add(__builtin_cpu_supports("avx2"), "avx2");
    add(__builtin_cpu_supports("fma"), "fma");
    add(__builtin_cpu_supports("avx512f"), "avx512f");
    add(__builtin_cpu_supports("avx512bw"), "avx512bw");
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        if (a >= 1) __cpuid_count(7, 1, more, b1, c1, d1);
        add(__builtin_cpu_supports("avx512f") && (more >> 5 & 1), "avx512_bf16");
        add(d >> 24 & 1, "amx_tile");
        add(d >> 22 & 1, "amx_bf16");
    }
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
#endif
    };
    return capability < 0 || capability > best ? nullptr : &variants[capability];
}

int cdn_interface() { return CDN_INTERFACE; }

int cdn_capability() {
    static const int capability = choose();
    return capability;
}

const char* cdn_build() {
    static const std::string build = std::string(
#ifdef __clang__
        "Clang " __clang_version__
#else
        "GCC " __VERSION__
#endif
#ifdef _OPENMP
        ", OpenMP"
#else
        ", without OpenMP: one thread"
#endif
    );
    return build.c_str();
}

const char* cdn_features() {
    static const std::string found = features();
    return found.c_str();
}
