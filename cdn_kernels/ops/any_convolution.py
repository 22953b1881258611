"""torch's convolutions of any kind, whose derivatives of every order are convolutions of the first order.

A convolution is linear in each of its arguments. Its three maps (forward, gradient by the input, gradient by the
filters) have each other as derivatives, as in :mod:`cdn_kernels.ops.conv`, for any number of dimensions, groups,
strides and dilations, transposed or not. torch's own second derivatives use filters of the size of images, and loop
over groups.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdn_kernels.ops.common import Context, Gradients, as_input, asked_for


class Options(NamedTuple):
    """What torch.ops.aten.convolution takes after its bias."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    """Convolve as torch.ops.aten.convolution does; x is batched."""
    return _Forward.apply(as_input(x), as_input(weight), None if bias is None else as_input(bias), options)


def options_of(func: Callable[..., Tensor], x: Tensor, weight: Tensor, *given: Any, **named: Any) -> Options | None:
    """Return the options of a call of one of torch's functions, None for those that no option expresses.

    Args:
        func: torch.conv1d to conv3d, or torch.conv_transpose1d to conv_transpose3d.
        x, weight: its images and filters.
        given, named: what it was called with after its bias.
    """
    transposed = "transpose" in func.__name__
    names = ("stride", "padding", "output_padding", "groups", "dilation") if transposed else _NAMES
    values = dict(zip(names, given)) | named
    count = weight.dim() - 2
    stride, dilation, output_padding = (
        _numbers(values.get(name, default), count)
        for name, default in (("stride", 1), ("dilation", 1), ("output_padding", 0))
    )
    padding = values.get("padding", 0)
    if isinstance(padding, str):
        sizes = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
        if padding not in ("same", "valid") or (
            padding == "same" and (set(stride) != {1} or any(s % 2 for s in sizes))
        ):
            return None
        padding = [size // 2 if padding == "same" else 0 for size in sizes]
    if x.dim() != weight.dim() or not x.is_floating_point():
        return None
    return Options(stride, _numbers(padding, count), dilation, transposed, output_padding, values.get("groups", 1))


_NAMES = ("stride", "padding", "dilation", "groups")


def _numbers(value: int | Sequence[int], count: int) -> list[int]:
    """Return a number for each dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


class _Forward(torch.autograd.Function):
    """u = weight * x + bias."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(x, weight)
        return torch.ops.aten.convolution(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        asked = [ctx.needs_input_grad[i] and asked_for(ctx, i) for i in range(3)]
        if not torch.is_grad_enabled():  # one call for all, where nothing is differentiated again
            channels = [weight.shape[1] * ctx.options.groups if ctx.options.transposed else weight.shape[0]]
            return *torch.ops.aten.convolution_backward(g, x, weight, channels, *ctx.options, asked), None
        return (
            _ByInput.apply(g, weight, x.detach(), ctx.options) if asked[0] else None,
            _ByFilters.apply(x, g, weight.detach(), ctx.options) if asked[1] else None,
            g.sum([0, *range(2, g.dim())]) if asked[2] else None,
            None,
        )


class _ByInput(torch.autograd.Function):
    """The gradient by x of <u, g>; x itself does not count."""

    @staticmethod
    def forward(ctx: Context, g: Tensor, weight: Tensor, x: Tensor, options: Options) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(g, weight)
        return _backward(g, x, weight, options, 0)

    @staticmethod
    def backward(ctx: Context, t: Tensor) -> Gradients:
        g, weight = ctx.saved_tensors
        return (
            _Forward.apply(t, weight, None, ctx.options) if asked_for(ctx, 0) else None,
            _ByFilters.apply(t, g, weight.detach(), ctx.options) if asked_for(ctx, 1) else None,
            None,
            None,
        )


class _ByFilters(torch.autograd.Function):
    """The gradient by the filters of <u, g>; these themselves do not count."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, g: Tensor, weight: Tensor, options: Options) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(x, g)
        return _backward(g, x, weight, options, 1)

    @staticmethod
    def backward(ctx: Context, t: Tensor) -> Gradients:
        x, g = ctx.saved_tensors
        return (
            _ByInput.apply(g, t, x.detach(), ctx.options) if asked_for(ctx, 0) else None,
            _Forward.apply(x, t, None, ctx.options) if asked_for(ctx, 1) else None,
            None,
            None,
        )


def _backward(g: Tensor, x: Tensor, weight: Tensor, options: Options, index: int) -> Tensor:
    mask = [index == 0, index == 1, False]
    return torch.ops.aten.convolution_backward(g, x, weight, None, *options, mask)[index]
