"""The three maps of a convolution on tensors: by our own kernels where they are faster, else by torch's.

Our own belong to the cpu backend and take bfloat16, channels last, where the processor has dot products or matrices
of it. What is faster was measured (python -m benchmarks.convolution).
"""
import torch

from ..backends import cpu
from .common import in_layout, is_channels_last


def forward(x, weight, stride, backend):
    """Return u = weight * x, [B, O, ceil(H / stride), ceil(W / stride)]."""
    if _runs_here(backend, x, weight, weight.shape[-1]) and (stride > 1 or weight.shape[0] % 32 == 0):
        out = empty_forward(x, weight, stride, backend)
        return _run(cpu.CONV_FORWARD, x, weight, out, (x.shape, weight.shape), stride)
    return torch.ops.aten.convolution(x, weight, None, *_options(weight.shape, stride))


def forward_gelu(x, weight, stride, keep, backend):
    """Return (phi(u), u) with u = weight * x, which is None unless it is kept."""
    if _runs_here(backend, x, weight, weight.shape[-1]):
        out = empty_forward(x, weight, stride, backend)
        u = torch.empty_like(out) if keep else None
        cpu.conv2d(cpu.CONV_FORWARD, in_layout(x, True), in_layout(weight, True), u, (x.shape, weight.shape), stride,
                   activation=out)
        return out, u
    u = torch.ops.aten.convolution(x, weight, None, *_options(weight.shape, stride))
    return torch.ops.cdn_kernels.gelu(u, backend), u if keep else None


def by_input(grad, weight, shape, stride, backend):
    """Return the gradient by x [B, I, H, W], the shape, from that by u."""
    # Of an argument that is not asked for, only the shape and the layout count; its memory is never touched.
    x = empty_by_input(grad, weight, shape, stride, backend)
    if _runs_here(backend, grad, weight, weight.shape[-1]) and (stride > 1 and shape[1] > 16 or shape[1] % 32 == 0):
        return _run(cpu.CONV_INPUT, grad, weight, x, (shape, weight.shape), stride)
    return _backward(grad, x, weight, stride, (True, False))[0]


def by_weight(x, grad, size, stride, backend):
    """Return the gradient by the filters [O, I, size, size] from that by u."""
    weight = empty_by_weight(x, grad, size, stride, backend)
    if _runs_here(backend, x, grad, size) and size > 1 and x.shape[1] > 16:
        return _run(cpu.CONV_WEIGHT, x, grad, weight, (x.shape, weight.shape), stride)
    return _backward(grad, x, weight, stride, (False, True))[1]


def empty_forward(x, weight, stride, backend):
    """Return an empty result of :func:`forward`."""
    batch, _, height, width = x.shape
    return _template(x, weight, (batch, weight.shape[0], -(-height // stride), -(-width // stride)))


def empty_by_input(grad, weight, shape, stride, backend):
    """Return an empty result of :func:`by_input`."""
    return _template(grad, weight, shape)


def empty_by_weight(x, grad, size, stride, backend):
    """Return an empty result of :func:`by_weight`."""
    return _template(x, grad, (grad.shape[1], x.shape[1], size, size))


def _runs_here(backend, x, other, size):
    return (backend == "cpu" and cpu.ENGINE is not None and x.dtype == torch.bfloat16
            and size <= cpu.LARGEST_FILTER and _channels_last(x, other) and 0 not in (*x.shape, *other.shape))


def _channels_last(x, other):
    # As torch does it: a tensor that came as contiguous out of some view does not turn the network around.
    return is_channels_last(x) or is_channels_last(other)


def _run(kind, first, second, out, shapes, stride):
    cpu.conv2d(kind, in_layout(first, True), in_layout(second, True), out, shapes, stride)
    return out


def _backward(grad, x, weight, stride, mask):
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *_options(weight.shape, stride), [*mask, False])


def _options(filters, stride):
    return [stride] * 2, [filters[-1] // 2] * 2, [1, 1], False, [0, 0], 1


def _template(first, second, shape):
    layout = torch.channels_last if _channels_last(first, second) else torch.contiguous_format
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout)
