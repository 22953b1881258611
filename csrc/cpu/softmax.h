// The second order of a softmax over rows, as attention has it: both derivatives of its backward pass at once.
//
//     g_x = p (g - <p, g>)        for p the softmax of a row of x, and g the gradient by p
//
// Of <g_x, t>, t a tangent of x, with A = <p, g> and B = <p, t>: the derivative by g is p (t - B), and that by p is
// g t - g B - t A.
#pragma once

#include "rows.h"
#include "variants.h"

namespace cdn::CDN_VARIANT {
namespace {

template <typename Storage>
struct SoftmaxTangent {
    using Real = typename Storage::Real;
    using Element = typename Storage::Element;

    const SoftmaxJob& job;
    const Rows<false> row{1, job.length, sizeof(Element)};  // as one channel, so that its elements are summed
    mutable Sums<Storage, 2, false> sums{row};

    void run(std::int64_t number) const {
        const std::int64_t start = number * job.length;
        const auto* p = static_cast<const Element*>(job.p) + start;
        const auto* grad = static_cast<const Element*>(job.grad) + start;
        const auto* dot = static_cast<const Element*>(job.tangent) + start;
        auto* by_grad = static_cast<Element*>(job.tangent_out) + start;
        auto* by_p = static_cast<Element*>(job.out) + start;
        sums.clear();
        sums.add([&](auto at) {
            const auto weight = at.load(p);
            at.add(0, weight, at.load(grad));
            at.add(1, weight, at.load(dot));
        });
        const Real a = static_cast<Real>(sums.row(0)[0]), b = static_cast<Real>(sums.row(1)[0]);
        row.template each<Storage>([&](auto at) {
            const auto g = at.load(grad), centred = at.load(dot) - b;
            at.store(by_grad, at.load(p) * centred);
            at.store(by_p, g * centred - at.load(dot) * a);
        });
    }
};

}  // namespace
}  // namespace cdn::CDN_VARIANT
