"""The three maps of a convolution on tensors: by our own kernels where they are faster, else by torch's.

Our own take images stored channels last. Where they are faster was measured, and every backend knows it
(conv2d_is_faster). Others are copied and their results copied back where that is faster still.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cdn_kernels.backends import cpu_engines
from cdn_kernels.backends.dispatch import kernels
from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT, ConvolutionShape
from cdn_kernels.ops.common import in_layout
from cdn_kernels.torch_faults import strided_gradient_may_crash

Result = TypeVar("Result", bound=Tensor | None)


def forward(x: Tensor, weight: Tensor, stride: int, backend: str) -> Tensor:
    """Return u = weight * x, [B, O, ceil(H / stride), ceil(W / stride)]."""
    shapes = x.shape, weight.shape
    if _runs_here(CONV_FORWARD, x, weight, shapes, stride, backend):
        return _run(CONV_FORWARD, x, weight, empty_forward(x, weight, stride, backend), shapes, stride, backend)
    return _torchs(x, weight, stride)


def forward_gelu(x: Tensor, weight: Tensor, stride: int, keep: bool, backend: str) -> tuple[Tensor, Tensor | None]:
    """Return (phi(u), u) with u = weight * x, which is None unless it is kept."""
    shapes = x.shape, weight.shape
    if _runs_here(CONV_FORWARD, x, weight, shapes, stride, backend, activation=True):
        out = empty_forward(x, weight, stride, backend)
        u = torch.empty_like(out) if keep else None
        _run(CONV_FORWARD, x, weight, u, shapes, stride, backend, activation=out)
        return out, u
    u = _torchs(x, weight, stride)
    return torch.ops.cdn_kernels.gelu(u, backend), u if keep else None


def by_input(grad: Tensor, weight: Tensor, shape: Sequence[int], stride: int, backend: str) -> Tensor:
    """Return the gradient by x [B, I, H, W], the shape, from that by u."""
    # Of an argument that is not asked for, only the shape and the layout count; its memory is never touched.
    x = empty_by_input(grad, weight, shape, stride, backend)
    shapes = shape, weight.shape
    if _runs_here(CONV_INPUT, grad, weight, shapes, stride, backend):
        return _run(CONV_INPUT, grad, weight, x, shapes, stride, backend)
    return _backward(grad, x, weight, stride, by_filters=False)


def by_preactivation(
    grad: Tensor, weight: Tensor, u: Tensor, source: Tensor | None, keep: bool, backend: str
) -> tuple[Tensor, Tensor | None]:
    """Return (phi'(u) p + source, p) with p the gradient by x = phi(u) from that by the result of stride 1.

    The source may be None, and p is unless it is kept.
    """
    shapes = u.shape, weight.shape
    if _runs_here(CONV_INPUT, grad, weight, shapes, 1, backend, activation=True):
        out = empty_by_input(grad, weight, u.shape, 1, backend)
        product = torch.empty_like(out) if keep else None
        added = None if source is None else in_layout(source, True)
        _run(CONV_INPUT, grad, weight, out, shapes, 1, backend, u=in_layout(u, True), added=added, product=product)
        return out, product
    product = by_input(grad, weight, u.shape, 1, backend)
    return torch.ops.cdn_kernels.gelu_backward(u, product, source, backend), product if keep else None


def by_weight(x: Tensor, grad: Tensor, size: int, stride: int, backend: str) -> Tensor:
    """Return the gradient by the filters [O, I, size, size] from that by u."""
    weight = empty_by_weight(x, grad, size, stride, backend)
    shapes = x.shape, weight.shape
    if _runs_here(CONV_WEIGHT, x, grad, shapes, stride, backend):
        return _run(CONV_WEIGHT, x, grad, weight, shapes, stride, backend)
    return _backward(grad, x, weight, stride, by_filters=True)


def all_run_here(x: Tensor, weight: Tensor, stride: int, backend: str) -> bool:
    """Tell whether all three maps of a convolution of x run in a backend's own kernels."""
    shapes = x.shape, weight.shape
    return all(_runs_here(kind, x, weight, shapes, stride, backend) for kind in (CONV_FORWARD, CONV_INPUT, CONV_WEIGHT))


def empty_forward(x: Tensor, weight: Tensor, stride: int, backend: str) -> Tensor:
    """Return an empty result of :func:`forward`."""
    batch, _, height, width = x.shape
    return _template(x, weight, (batch, weight.shape[0], -(-height // stride), -(-width // stride)))


def empty_by_input(grad: Tensor, weight: Tensor, shape: Sequence[int], stride: int, backend: str) -> Tensor:
    """Return an empty result of :func:`by_input`."""
    return _template(grad, weight, shape)


def empty_by_weight(x: Tensor, grad: Tensor, size: int, stride: int, backend: str) -> Tensor:
    """Return an empty result of :func:`by_weight`."""
    return _template(x, grad, (grad.shape[1], x.shape[1], size, size))


def _runs_here(
    kind: int,
    first: Tensor,
    second: Tensor,
    shapes: ConvolutionShape,
    stride: int,
    backend: str,
    activation: bool = False,
) -> bool:
    if not results_are_channels_last(first, second):
        # On GPUs that was not measured.
        if backend != "cpu" or not cpu_engines.worth_copying(first.dtype, shapes, stride):
            return False
    return 0 not in (*first.shape, *second.shape) and kernels(backend).conv2d_is_faster(
        kind, first, shapes, stride, activation
    )


def results_are_channels_last(x: Tensor, other: Tensor) -> bool:
    """Tell whether results of two operands are to be stored channels last."""
    # As torch does it: a tensor that came as contiguous out of some view does not turn the network around.
    return asks_for_channels_last(x) or asks_for_channels_last(other)


def asks_for_channels_last(x: Tensor) -> bool:
    """Tell whether results for images or filters x are to be stored channels last."""
    # Of a single channel or pixel both layouts are one, and strides say which was meant.
    return x.is_contiguous(memory_format=torch.channels_last) and (not x.is_contiguous() or _strides_ascend(x))


def _strides_ascend(x: Tensor) -> bool:
    """Tell whether the strides of x [B, C, H, W] grow from channels over columns and rows to images."""
    if x.stride(1) == 0 or 0 in x.shape:
        return False
    sizes, strides = ([of[d] for d in (1, 3, 2, 0)] for of in (x.shape, x.stride()))
    # In a row of single values, as in every second of them, no order is seen.
    follows = [1, *(stride * size for stride, size in zip(strides, sizes))]
    return all(s >= f for s, f in zip(strides, follows)) and follows[3] != strides[0]


def _run(
    kind: int,
    first: Tensor,
    second: Tensor,
    out: Result,
    shapes: ConvolutionShape,
    stride: int,
    backend: str,
    **options: Tensor | None,
) -> Result:
    """Run a map channels last; results that are asked for in the other layout are copied."""
    copies: list[tuple[Tensor, Tensor]] = []

    def writable(result: Tensor | None) -> Tensor | None:
        if result is None or result.is_contiguous(memory_format=torch.channels_last):
            return result
        copies.append((result, torch.empty_like(result, memory_format=torch.channels_last)))
        return copies[-1][1]

    options |= {name: writable(options[name]) for name in ("activation", "product") if options.get(name) is not None}
    kernels(backend).conv2d(
        kind, in_layout(first, True), in_layout(second, True), writable(out), shapes, stride, **options
    )
    for result, written in copies:
        result.copy_(written)
    return out


def _torchs(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return torch's convolution, in our layout: in float64 cuDNN's is contiguous also of images channels last."""
    u = torch.ops.aten.convolution(x, weight, None, *_options(weight.shape, stride))
    return in_layout(u, results_are_channels_last(x, weight))


def _backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int, by_filters: bool) -> Tensor:
    """Return torch's gradient by the images or by the filters, likewise."""
    if by_filters and x.device.type == "cpu" and strided_gradient_may_crash((x.shape, weight.shape), stride):
        g, h = (t.movedim(1, -1).flatten(0, 2) for t in (grad, x[:, :, ::stride, ::stride]))
        return in_layout((g.T @ h).view_as(weight), results_are_channels_last(grad, x))
    mask = [not by_filters, by_filters, False]
    options = _options(weight.shape, stride)
    found = torch.ops.aten.convolution_backward(grad, x, weight, None, *options, mask)
    return in_layout(found[by_filters], results_are_channels_last(grad, x if by_filters else weight))


def _options(filters: Sequence[int], stride: int) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
    """Return (stride, padding, dilation, transposed, padding of the output, groups) for torch's operations."""
    return [stride] * 2, [filters[-1] // 2] * 2, [1, 1], False, [0, 0], 1


def _template(first: Tensor, second: Tensor, shape: Sequence[int]) -> Tensor:
    layout = torch.channels_last if results_are_channels_last(first, second) else torch.contiguous_format
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout)
