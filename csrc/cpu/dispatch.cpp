// Which variants this processor runs. Compiled without processor flags, like everything that is no variant.
#include "dispatch.h"

#include <cstdlib>
#include <cstring>

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
