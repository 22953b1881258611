"""Bias-free convolution whose derivatives of every order are convolutions of the first order.

torch differentiates a convolution's backward through convolutions whose filters have the size of images, which is
slow on every device. Here the three bilinear maps (forward, gradient by the input, gradient by the filters) are
operations of their own, and each has the other two as its derivatives. Weight gradients are computed only by backward
passes that use them.

``conv2d_gelu`` also returns the pre-activation, through which second derivatives flow back: they reach it as a gradient
of its own, and the backward pass adds it on the way.
"""

from typing import Any

import torch
from torch import Tensor

from cdn_kernels import reference
from cdn_kernels.backends import measured
from cdn_kernels.ops import convolve
from cdn_kernels.ops.common import LIBRARY, Context, Gradients, asked_for, check_tensor, register, resolve_untransformed
from cdn_kernels.ops.filters import as_filters, by_filters

LIBRARY.define("conv2d(Tensor x, Tensor weight, int stride, str backend) -> Tensor")
LIBRARY.define("conv2d_gelu(Tensor x, Tensor weight, int stride, bool keep, str backend) -> (Tensor, Tensor)")
LIBRARY.define("conv2d_input(Tensor grad, Tensor weight, SymInt[] shape, int stride, str backend) -> Tensor")
LIBRARY.define("conv2d_weight(Tensor x, Tensor grad, int size, int stride, str backend) -> Tensor")


def conv2d(x: Tensor, weight: Tensor, stride: int = 1, *, impl: str = "auto") -> Tensor:
    """Convolve without bias and with "same" padding.

    Args:
        x: images [B, I, H, W].
        weight: filters [O, I, k, k], k odd; zero padding of k // 2 on each side. Under autocast, both are rounded to
            its dtype.
        stride: 1 or more.
        impl: "auto", "reference" (torch's convolution and its own double backward), "cpu", "triton" or "cuda" (our own
            kernels where they are faster, else torch's convolutions, arranged as all backends arrange them).

    Returns:
        [B, O, ceil(H / stride), ceil(W / stride)]. Differentiable to any order, in first-order convolutions only.

    Raises:
        TypeError, ValueError: an argument of the wrong type or shape.

    Limitations: on CPUs, numbers below the range of normal ones, 1.2e-38, may count as zeros, but in float64.
    """
    check_convolution(x, weight, stride)
    backend = resolve_untransformed("conv2d", impl, x, fastest_for(x, weight, stride))
    if backend == "reference":
        return reference.conv2d(x, weight, stride)
    return torch.ops.cdn_kernels.conv2d(*as_autocast(x, weight=weight), stride, backend)


def conv2d_gelu(x: Tensor, weight: Tensor, stride: int = 1, *, impl: str = "auto") -> Tensor:
    """Convolve without bias, "same" padding, and apply the exact GELU.

    Args, errors: as :func:`conv2d` and :func:`cdn_kernels.gelu`.

    Returns:
        ``u Phi(u)`` with ``u = weight * x``. Differentiable any number of times, from the third on by
        the reference.
    """
    check_convolution(x, weight, stride)
    backend = resolve_untransformed("conv2d_gelu", impl, x, fastest_for(x, weight, stride))
    if backend == "reference":
        return reference.conv2d_gelu(x, weight, stride)
    x, weight = as_autocast(x, weight=weight)
    keep = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return torch.ops.cdn_kernels.conv2d_gelu(x, weight, stride, keep, backend)[0]


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast gives to the convolutions of x, None where it is not active."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def dtype_for(x: Tensor, **filters: Tensor) -> torch.dtype:
    """Return the dtype that images and filters are convolved in, that of autocast where it is active.

    Raises:
        TypeError: filters of another dtype than x.
    """
    dtype = _autocast_dtype(x)
    if dtype is not None:
        return dtype
    for name, weight in filters.items():
        if x.dtype != weight.dtype:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {weight.dtype}")
    return x.dtype


def as_autocast(x: Tensor, **filters: Tensor) -> tuple[Tensor, ...]:
    """Return images and filters as the operations take them, in the dtype and with the errors of :func:`dtype_for`."""
    dtype = dtype_for(x, **filters)
    return x.to(dtype), *(as_filters(weight, dtype) for weight in filters.values())


def fastest_for(x: Tensor, weight: Tensor, stride: int) -> str | None:
    """Return the backend that was measured to run a convolution of x fastest, or None."""
    if measured.gpu(x.device) is None:  # a device that autocast may not know
        return None
    return measured.fastest_for_layer(x.device, _autocast_dtype(x) or x.dtype, (x.shape, weight.shape), stride)


def check_convolution(x: Tensor, weight: Tensor, stride: int, name: str = "weight") -> None:
    """Raise TypeError or ValueError unless these are images, filters for them, called by a name, and a stride."""
    check_tensor("x", x, 4)
    check_filters(weight, x.device, name)
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"x must have the {weight.shape[1]} channels that {name} takes, got {list(x.shape)}")
    if not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride must be an integer of 1 or more, got {stride!r}")


def check_filters(weight: Tensor, device: torch.device, name: str) -> None:
    """Raise TypeError or ValueError unless weight holds filters that the operations take, on the device of x."""
    check_tensor(name, weight, 4)
    _, _, height, width = weight.shape
    if height != width or height % 2 == 0:
        raise ValueError(f"{name} must be [O, I, k, k] with odd k, got {list(weight.shape)}")
    if device != weight.device:
        raise ValueError(f"{name} must be on the device of x, {device}, got {weight.device}")


def _forward_gelu(x: Tensor, weight: Tensor, stride: int, keep: bool, backend: str) -> tuple[Tensor, Tensor]:
    out, u = convolve.forward_gelu(x, weight, stride, keep, backend)
    return out, out.new_empty(0) if u is None else u


def _empty_forward_gelu(x: Tensor, weight: Tensor, stride: int, keep: bool, backend: str) -> tuple[Tensor, Tensor]:
    out = convolve.empty_forward(x, weight, stride, backend)
    return out, torch.empty_like(out) if keep else out.new_empty(0)


for _name, _function, _fake in (
    ("conv2d", convolve.forward, convolve.empty_forward),
    ("conv2d_gelu", _forward_gelu, _empty_forward_gelu),
    ("conv2d_input", convolve.by_input, convolve.empty_by_input),
    ("conv2d_weight", convolve.by_weight, convolve.empty_by_weight),
):
    register(_name, _function, _fake)


def _save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, *_, stride, backend = inputs
    ctx.options = stride, backend
    ctx.save_for_backward(first, second)


def _by_both(ctx: Context, x: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients by x and by the filters from that by u, as far as they are asked for."""
    ops = torch.ops.cdn_kernels
    return (
        ops.conv2d_input(g, weight, x.shape, *ctx.options) if asked_for(ctx, 0) else None,
        by_filters(ctx, 1, x, g, weight.shape[-1], *ctx.options) if asked_for(ctx, 1) else None,
    )


def _conv2d_derivatives(ctx: Context, g: Tensor) -> Gradients:
    x, weight = ctx.saved_tensors
    return *_by_both(ctx, x, weight, g), None, None


def _save_gelu(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, stride, keep, backend = inputs
    ctx.options = stride, backend
    _, u = output
    ctx.save_for_backward(x, weight, u)
    ctx.set_materialize_grads(False)
    if not keep:
        ctx.mark_non_differentiable(u)


def _conv2d_gelu_derivatives(ctx: Context, g_out: Tensor | None, g_u: Tensor | None) -> Gradients:
    x, weight, u = ctx.saved_tensors
    _, backend = ctx.options
    g = g_u if g_out is None else torch.ops.cdn_kernels.gelu_backward(u, g_out, g_u, backend)
    if g is None:
        return None, None, None, None, None
    return *_by_both(ctx, x, weight, g), None, None, None


def _conv2d_input_derivatives(ctx: Context, t: Tensor) -> Gradients:
    grad, weight = ctx.saved_tensors
    ops = torch.ops.cdn_kernels
    return (
        ops.conv2d(t, weight, *ctx.options) if asked_for(ctx, 0) else None,
        by_filters(ctx, 1, t, grad, weight.shape[-1], *ctx.options) if asked_for(ctx, 1) else None,
        None,
        None,
        None,
    )


def _conv2d_weight_derivatives(ctx: Context, t: Tensor) -> Gradients:
    x, grad = ctx.saved_tensors
    ops = torch.ops.cdn_kernels
    return (
        ops.conv2d_input(grad, t, x.shape, *ctx.options) if asked_for(ctx, 0) else None,
        ops.conv2d(x, t, *ctx.options) if asked_for(ctx, 1) else None,
        None,
        None,
        None,
    )


for _name, _derivatives, _setup in (
    ("conv2d", _conv2d_derivatives, _save),
    ("conv2d_gelu", _conv2d_gelu_derivatives, _save_gelu),
    ("conv2d_input", _conv2d_input_derivatives, _save),
    ("conv2d_weight", _conv2d_weight_derivatives, _save),
):
    torch.library.register_autograd(f"cdn_kernels::{_name}", _derivatives, setup_context=_setup, lib=LIBRARY)
