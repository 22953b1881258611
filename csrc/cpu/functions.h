// The functions that passes apply to each element, as types: of a number or a pack of them, with two derivatives.
#pragma once

#include "../elu.h"
#include "../gelu.h"
#include "../silu.h"
#include "pack.h"

namespace cdn::CDN_VARIANT {
namespace {

struct ExactGelu {
    static constexpr bool identity = false;
    template <bool brief, typename Number>
    static Phi<Number> of(Number u) {
        return gelu<brief>(u);
    }
};

struct Silu {
    static constexpr bool identity = false;
    template <bool brief, typename Number>
    static Phi<Number> of(Number u) {
        return silu<brief>(u);
    }
};

struct Elu {
    static constexpr bool identity = false;
    template <bool brief, typename Number>
    static Phi<Number> of(Number u) {
        return elu<brief>(u);
    }
};

// Where a normalization has no function before it. Nothing is to be multiplied by its derivatives, which are constant.
struct Identity {
    static constexpr bool identity = true;
    template <bool, typename Number>
    static Phi<Number> of(Number u) {
        return {u, Number(1), Number(0)};
    }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
