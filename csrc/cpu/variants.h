// What each compiled variant of the CPU kernels offers to the dispatcher.
#pragma once

#include <cstdint>

#include "../api.h"
#include "../philox.h"

namespace cdn {

// An add-noise call, cut into units that can run in any order on any thread.
struct NoiseJob {
    const void* x;
    const void* sigma;
    void* y;
    int type;
    std::int64_t batch, size, channels;
    Key key;

    static constexpr std::int64_t kUnit = 1024;  // elements of an image, in C order, that make a unit

    std::int64_t units_per_image() const { return (size + kUnit - 1) / kUnit; }
    std::int64_t units() const { return batch * units_per_image(); }
};

struct Variant {
    void (*add_noise)(const NoiseJob&, std::int64_t first_unit, std::int64_t last_unit);
    void (*random_words)(std::uint32_t* words, std::int64_t batch, std::int64_t blocks, Key, Stream);
};

namespace scalar { extern const Variant variant; }
namespace avx2 { extern const Variant variant; }
namespace avx512 { extern const Variant variant; }

}  // namespace cdn
