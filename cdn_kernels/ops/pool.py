"""Means of feature images over pixels, and energies of linear maps of them: what a head reads from a trunk.

Four linear or bilinear maps are registered with torch, each the derivative of another, so they differentiate to any
order: ``channel_mean`` and its adjoint ``channel_spread``; ``sample_dot``, the mean over pixels of <a, b>, and its
adjoint ``sample_scale``. Images stay in their storage type; values are float32 (float64 for float64).
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from cdn_kernels import reference
from cdn_kernels.backends.dispatch import kernels
from cdn_kernels.backends.interface import DOT, MEAN, SCALE, SPREAD
from cdn_kernels.ops.common import (
    LIBRARY,
    Context,
    Gradients,
    check_tensor,
    empty_result,
    in_layout,
    is_channels_last,
    of_one_tensor,
    register,
    resolve_untransformed,
)
from cdn_kernels.ops.conv import conv2d
from cdn_kernels.reference import compute_dtype

LIBRARY.define("channel_mean(Tensor h, str backend) -> Tensor")
LIBRARY.define("channel_spread(Tensor values, Tensor like, str backend) -> Tensor")
LIBRARY.define("sample_square(Tensor e, str backend) -> Tensor")
LIBRARY.define("sample_dot(Tensor a, Tensor b, str backend) -> Tensor")
LIBRARY.define("sample_scale(Tensor a, Tensor values, str backend) -> Tensor")


def channel_mean(h: Tensor, *, impl: str = "auto") -> Tensor:
    """Average feature images over pixels.

    Args:
        h: [B, C, H, W] with at least one pixel; float32, float64, bfloat16 or float16.
        impl: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [B, C] in float32 (float64 for float64). Differentiable to any order.

    Raises:
        TypeError, ValueError: h is not a tensor of this kind.
        RuntimeError: the chosen impl cannot run here.
    """
    _check_images("h", h)
    return of_one_tensor("channel_mean", impl, h)


def energy(features: Sequence[Tensor], maps: Sequence[Tensor], *, impl: str = "auto") -> Tensor:
    """Sum the mean squares of linear maps of feature images: ``q = sum_l mean_pixels |A_l h_l|^2``.

    Args:
        features: list of [B, C_l, H_l, W_l].
        maps: list of 1x1 filters A_l [E_l, C_l, 1, 1].
        impl: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        q [B] in float32 (float64 for float64). Differentiable to any order.

    Raises:
        TypeError, ValueError: an argument of the wrong type or shape, or lists of different lengths.
        RuntimeError: the chosen impl cannot run here.
    """
    if not features or len(features) != len(maps):
        raise ValueError(f"maps must be one per feature image, {len(features)}, got {len(maps)}")
    for h, weight in zip(features, maps):
        _check_images("features", h)
        if weight.device != h.device:
            raise ValueError(f"maps must be on the device of their features, {h.device}, got {weight.device}")
    backend = resolve_untransformed("energy", impl, features[0])
    if backend == "reference":
        return reference.energy(features, maps)
    terms = [
        torch.ops.cdn_kernels.sample_square(conv2d(h, weight, impl=impl), backend) for h, weight in zip(features, maps)
    ]
    return reduce(add, terms)


def _check_images(name: str, h: Tensor) -> None:
    check_tensor(name, h, 4)
    if 0 in h.shape[2:]:
        raise ValueError(f"{name} must have pixels, got {list(h.shape)}")


# ------------------------------------------------------------------------------------------------------------
# Kernels
# ------------------------------------------------------------------------------------------------------------


def _values(h: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=compute_dtype(h.dtype), device=h.device)


def _empty_means(h: Tensor, backend: str) -> Tensor:
    return _values(h, *h.shape[:2])


def _empty_sums(e: Tensor, *_: Any) -> Tensor:
    return _values(e, e.shape[0])


def _channel_mean(h: Tensor, backend: str) -> Tensor:
    values, last = _empty_means(h, backend), is_channels_last(h)
    kernels(backend).pool(MEAN, h.shape, last, values, a=in_layout(h, last))
    return values


def _channel_spread(values: Tensor, like: Tensor, backend: str) -> Tensor:
    out = empty_result(like)
    kernels(backend).pool(SPREAD, out.shape, is_channels_last(out), values.contiguous(), out=out)
    return out


def _sample_dot(a: Tensor, b: Tensor, backend: str) -> Tensor:
    values, last = _empty_sums(a), is_channels_last(a)
    kernels(backend).pool(DOT, a.shape, last, values, a=in_layout(a, last), b=in_layout(b, last))
    return values


def _sample_scale(a: Tensor, values: Tensor, backend: str) -> Tensor:
    out = empty_result(a)
    last = is_channels_last(out)
    kernels(backend).pool(SCALE, a.shape, last, values.contiguous(), a=in_layout(a, last), out=out)
    return out


for _name, _kernel, _fake in (
    ("channel_mean", _channel_mean, _empty_means),
    ("channel_spread", _channel_spread, lambda values, like, backend: empty_result(like)),
    ("sample_square", lambda e, backend: _sample_dot(e, e, backend), _empty_sums),
    ("sample_dot", _sample_dot, _empty_sums),
    ("sample_scale", _sample_scale, lambda a, values, backend: empty_result(a)),
):
    register(_name, _kernel, _fake)


def _save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _save_like(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    # Only shape, dtype and layout of the images matter: a saved tensor would keep them alive.
    *_, h, ctx.backend = inputs
    ctx.like = (h.shape, h.dtype, h.device, torch.channels_last if is_channels_last(h) else torch.contiguous_format)


def _mean_derivative(ctx: Context, g: Tensor) -> Gradients:
    shape, dtype, device, layout = ctx.like
    like = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
    return torch.ops.cdn_kernels.channel_spread(g, like, ctx.backend), None


def _dot_derivatives(ctx: Context, g: Tensor) -> Gradients:
    a, b = ctx.saved_tensors
    ops = torch.ops.cdn_kernels
    return ops.sample_scale(b, g, ctx.backend), ops.sample_scale(a, g, ctx.backend), None


def _scale_derivatives(ctx: Context, t: Tensor) -> Gradients:
    a, values = ctx.saved_tensors
    ops = torch.ops.cdn_kernels
    return ops.sample_scale(t, values, ctx.backend), ops.sample_dot(a, t, ctx.backend), None


def _spread_derivative(ctx: Context, t: Tensor) -> Gradients:
    return torch.ops.cdn_kernels.channel_mean(t, ctx.backend), None, None


def _square_derivative(ctx: Context, g: Tensor) -> Gradients:
    return torch.ops.cdn_kernels.sample_scale(ctx.saved_tensors[0], 2 * g, ctx.backend), None


for _name, _derivatives, _setup in (
    ("channel_mean", _mean_derivative, _save_like),
    ("channel_spread", _spread_derivative, _save_like),
    ("sample_square", _square_derivative, _save),
    ("sample_dot", _dot_derivatives, _save),
    ("sample_scale", _scale_derivatives, _save),
):
    torch.library.register_autograd(f"cdn_kernels::{_name}", _derivatives, setup_context=_setup, lib=LIBRARY)
