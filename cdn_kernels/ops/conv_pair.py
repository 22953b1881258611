"""Two convolutions with a GELU between them, whose backward passes end in the GELU's derivative.

With u the pre-activation and h = phi(u), the gradient by u is phi'(u) times that by h, and a kernel can multiply while
it still holds the latter. As in ``conv2d_gelu``, u is returned: second derivatives reach it as a gradient of its own,
which that kernel adds on the way. Where h is needed again, in the gradient by the second filters, its own gradient goes
to u as well, so that derivatives of every order stay whole.
"""

from typing import Any

import torch
from torch import Tensor

from cdn_kernels import reference
from cdn_kernels.ops import convolve
from cdn_kernels.ops.common import (
    LIBRARY,
    Context,
    Gradients,
    asked_for,
    register,
    resolve_untransformed,
    without_third_order,
)
from cdn_kernels.ops.conv import as_autocast, check_convolution, check_filters, fastest_for
from cdn_kernels.ops.filters import by_filters

LIBRARY.define(
    "conv2d_gelu_conv2d(Tensor x, Tensor first, Tensor second, int stride, bool keep, str backend)"
    " -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define("conv2d_of_gelu(Tensor u, Tensor h, Tensor weight, str backend) -> Tensor")
LIBRARY.define(
    "conv2d_of_gelu_input(Tensor grad, Tensor weight, Tensor u, Tensor? source, bool keep, str backend)"
    " -> (Tensor, Tensor)"
)
LIBRARY.define("conv2d_of_gelu_weight(Tensor u, Tensor h, Tensor grad, int size, str backend) -> Tensor")


def conv2d_gelu_conv2d(x: Tensor, first: Tensor, second: Tensor, stride: int = 1, *, impl: str = "auto") -> Tensor:
    """Convolve without bias, apply the exact GELU, and convolve again: the residual branch of a block.

    It computes what :func:`cdn_kernels.conv2d` of :func:`cdn_kernels.conv2d_gelu` does, and saves a pass over memory in
    every backward pass where a kernel has the GELU's derivative in its epilogue.

    Args:
        x: images [B, I, H, W].
        first: filters [M, I, k, k]; second: filters [O, M, l, l]; k and l odd, with "same" padding. Under autocast, all
            are rounded to its dtype.
        stride: of the first convolution, 1 or more; the second has 1.
        impl: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [B, O, ceil(H / stride), ceil(W / stride)]. Differentiable twice; impl="reference" any number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong type or shape.
    """
    check_convolution(x, first, stride, "first")
    check_filters(second, x.device, "second")
    if second.shape[1] != first.shape[0]:
        raise ValueError(f"second must take the {first.shape[0]} channels that first gives, got {list(second.shape)}")
    backend = resolve_untransformed("conv2d_gelu", impl, x, fastest_for(x, first, stride))
    if backend == "reference":
        return reference.conv2d(reference.conv2d_gelu(x, first, stride), second)
    x, first, second = as_autocast(x, first=first, second=second)
    keep = torch.is_grad_enabled() and (x.requires_grad or first.requires_grad or second.requires_grad)
    return torch.ops.cdn_kernels.conv2d_gelu_conv2d(x, first, second, stride, keep, backend)[0]


def _forward(
    x: Tensor, first: Tensor, second: Tensor, stride: int, keep: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    h, u = convolve.forward_gelu(x, first, stride, keep, backend)
    out = convolve.forward(h, second, 1, backend)
    return (out, out.new_empty(0), out.new_empty(0)) if u is None else (out, h, u)


def _empty_forward(
    x: Tensor, first: Tensor, second: Tensor, stride: int, keep: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    h = convolve.empty_forward(x, first, stride, backend)
    out = convolve.empty_forward(h, second, 1, backend)
    return (out, h, torch.empty_like(h)) if keep else (out, out.new_empty(0), out.new_empty(0))


def _by_preactivation(
    grad: Tensor, weight: Tensor, u: Tensor, source: Tensor | None, keep: bool, backend: str
) -> tuple[Tensor, Tensor]:
    out, product = convolve.by_preactivation(grad, weight, u, source, keep, backend)
    return out, out.new_empty(0) if product is None else product


def _empty_by_preactivation(
    grad: Tensor, weight: Tensor, u: Tensor, source: Tensor | None, keep: bool, backend: str
) -> tuple[Tensor, Tensor]:
    out = convolve.empty_by_input(grad, weight, u.shape, 1, backend)
    return out, torch.empty_like(out) if keep else out.new_empty(0)


register("conv2d_gelu_conv2d", _forward, _empty_forward)
register(
    "conv2d_of_gelu",
    lambda u, h, weight, backend: convolve.forward(h, weight, 1, backend),
    lambda u, h, weight, backend: convolve.empty_forward(h, weight, 1, backend),
)
register("conv2d_of_gelu_input", _by_preactivation, _empty_by_preactivation)
register(
    "conv2d_of_gelu_weight",
    lambda u, h, grad, size, backend: convolve.by_weight(h, grad, size, 1, backend),
    lambda u, h, grad, size, backend: convolve.empty_by_weight(h, grad, size, 1, backend),
)


def _save_pair(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, first, second, ctx.stride, keep, ctx.backend = inputs
    _, h, u = output
    ctx.save_for_backward(x, first, second, h, u)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(h,) if keep else (h, u))


def _pair_derivatives(ctx: Context, g_out: Tensor | None, _: None, g_u: Tensor | None) -> Gradients:
    x, first, second, h, u = ctx.saved_tensors
    ops, options = torch.ops.cdn_kernels, (ctx.stride, ctx.backend)
    by_x, by_first, by_second = (asked_for(ctx, index) for index in range(3))
    g = g_u
    if g_out is not None and (by_x or by_first):
        g = _input(g_out, second, u, g_u, ctx.backend)
    return (
        ops.conv2d_input(g, first, x.shape, *options) if by_x and g is not None else None,
        by_filters(ctx, 1, x, g, first.shape[-1], *options) if by_first and g is not None else None,
        _by_second(ctx, u, h, g_out, second.shape[-1]) if by_second and g_out is not None else None,
        None,
        None,
        None,
    )


def _by_second(ctx: Context, u: Tensor, h: Tensor, grad: Tensor, size: int) -> Tensor:
    """Return the gradient by the second filters, the third input of both operations with h, from that by the result."""
    if torch.is_grad_enabled():
        return torch.ops.cdn_kernels.conv2d_of_gelu_weight(u, h, grad, size, ctx.backend)
    return by_filters(ctx, 2, h, grad, size, 1, ctx.backend)


def _input(grad: Tensor, weight: Tensor, u: Tensor, source: Tensor | None, backend: str) -> Tensor:
    given = (grad, weight, u) if source is None else (grad, weight, u, source)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    return torch.ops.cdn_kernels.conv2d_of_gelu_input(grad, weight, u, source, keep, backend)[0]


def _save_input(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, weight, u, source, _, ctx.backend = inputs
    _, product = output
    ctx.has_source = source is not None
    ctx.save_for_backward(grad, weight, u, product)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(product)


def _input_derivatives(ctx: Context, t: Tensor | None, _: None) -> Gradients:
    """Differentiate phi'(u) p + source, with p the gradient by h that was kept."""
    grad, weight, u, product = ctx.saved_tensors
    if t is None:
        return (None,) * 6
    ops, options = torch.ops.cdn_kernels, (1, ctx.backend)
    # The product that was kept tells nothing of what it depends on.
    along, by_u = without_third_order(*ops.gelu_tangent(u, product, t, ctx.backend))
    return (
        ops.conv2d(along, weight, *options) if asked_for(ctx, 0) else None,
        by_filters(ctx, 1, along, grad, weight.shape[-1], *options) if asked_for(ctx, 1) else None,
        by_u,
        t if ctx.has_source else None,
        None,
        None,
    )


def _save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors[:3])


def _of_gelu_derivatives(ctx: Context, t: Tensor) -> Gradients:
    u, h, weight = ctx.saved_tensors
    return (
        _input(t, weight, u, None, ctx.backend) if asked_for(ctx, 0) else None,
        None,
        _by_second(ctx, u, h, t, weight.shape[-1]) if asked_for(ctx, 2) else None,
        None,
    )


def _weight_derivatives(ctx: Context, t: Tensor) -> Gradients:
    u, h, grad = ctx.saved_tensors
    return (
        _input(grad, t, u, None, ctx.backend) if asked_for(ctx, 0) else None,
        None,
        torch.ops.cdn_kernels.conv2d_of_gelu(u, h, t, ctx.backend) if asked_for(ctx, 2) else None,
        None,
        None,
    )


for _name, _derivatives, _setup in (
    ("conv2d_gelu_conv2d", _pair_derivatives, _save_pair),
    ("conv2d_of_gelu", _of_gelu_derivatives, _save),
    ("conv2d_of_gelu_input", _input_derivatives, _save_input),
    ("conv2d_of_gelu_weight", _weight_derivatives, _save),
):
    torch.library.register_autograd(f"cdn_kernels::{_name}", _derivatives, setup_context=_setup, lib=LIBRARY)
