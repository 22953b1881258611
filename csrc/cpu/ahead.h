// Prefetches of what comes next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace cdn::CDN_VARIANT {
namespace {

// Memory that is wanted next, fetched little by little while products leave the memory idle.
class Ahead {
public:
    Ahead() = default;
    // Elements between two places, to be written or only read, in so many steps.
    template <typename Element>
    Ahead(Element* first, Element* last, std::int64_t steps)
        : next_(reinterpret_cast<const char*>(first)), end_(reinterpret_cast<const char*>(last)),
          step_((end_ - next_) / 64 / steps * 64 + 64), to_write_(!std::is_const_v<Element>) {}

    void fetch() {
        const char* stop = std::min(next_ + step_, end_);
        if (to_write_)
            for (; next_ < stop; next_ += 64) __builtin_prefetch(next_, 1, 3);
        else
            for (; next_ < stop; next_ += 64) __builtin_prefetch(next_, 0, 2);
    }

private:
    const char *next_ = nullptr, *end_ = nullptr;
    std::int64_t step_ = 0;
    bool to_write_ = false;
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
