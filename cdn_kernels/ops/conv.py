"""Bias-free convolution whose derivatives of every order are convolutions of the first order.

torch differentiates a convolution's backward through convolutions whose filters have the size of images, which is
slow on every device. Here the three bilinear maps (forward, gradient by the input, gradient by the filters) are
operations of their own, and each has the other two as its derivatives. Weight gradients are computed only by backward
passes that use them.
"""
import torch

from .. import reference
from .common import LIBRARY, as_input, asked_for, check_tensor, is_channels_last, resolve_untransformed
from .gelu import gelu

LIBRARY.define("conv2d(Tensor x, Tensor weight, int stride) -> Tensor")
LIBRARY.define("conv2d_input(Tensor grad, Tensor weight, SymInt[] shape, int stride) -> Tensor")
LIBRARY.define("conv2d_weight(Tensor x, Tensor grad, int size, int stride) -> Tensor")


def conv2d(x, weight, stride=1, *, impl="auto"):
    """Convolve without bias and with "same" padding.

    Args:
        x: images [B, I, H, W].
        weight: filters [O, I, k, k], k odd; zero padding of k // 2 on each side. Under autocast, both are rounded to
            its dtype.
        stride: 1 or more.
        impl: "auto", "reference" (torch's convolution and its own double backward), or "cpu".

    Returns:
        [B, O, ceil(H / stride), ceil(W / stride)]. Differentiable to any order, in first-order convolutions only.

    Raises:
        TypeError, ValueError: an argument of the wrong type or shape.
    """
    _check(x, weight, stride)
    if resolve_untransformed("conv2d", impl, x) == "reference":
        return reference.conv2d(x, weight, stride)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    return torch.ops.cdn_kernels.conv2d(x, as_input(weight), stride)


def conv2d_gelu(x, weight, stride=1, *, impl="auto"):
    """Convolve without bias, "same" padding, and apply the exact GELU.

    Args, errors: as :func:`conv2d` and :func:`cdn_kernels.gelu`.

    Returns:
        ``u Phi(u)`` with ``u = weight * x``. Differentiable twice; impl="reference" any number of times.
    """
    return gelu(conv2d(x, weight, stride, impl=impl), impl=impl)


def _check(x, weight, stride):
    check_tensor("x", x, 4)
    check_tensor("weight", weight, 4)
    outputs, inputs, height, width = weight.shape
    if height != width or height % 2 == 0:
        raise ValueError(f"weight must be [O, I, k, k] with odd k, got {list(weight.shape)}")
    if x.shape[1] != inputs:
        raise ValueError(f"x must have the {inputs} channels that weight takes, got {list(x.shape)}")
    if not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride must be an integer of 1 or more, got {stride!r}")
    if x.device != weight.device:
        raise ValueError(f"weight must be on the device of x, {x.device}, got {weight.device}")


def _backward(grad, x, weight, stride, mask):
    padding = weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False,
                                               [0, 0], 1, [*mask, False])


def _conv2d(x, weight, stride):
    return torch.ops.aten.convolution(x, weight, None, [stride] * 2, [weight.shape[-1] // 2] * 2, [1, 1], False,
                                      [0, 0], 1)


def _conv2d_input(grad, weight, shape, stride):
    # Only the shape and the layout of the other argument count; its memory is never touched.
    return _backward(grad, _template(grad, shape), weight, stride, (True, False))[0]


def _conv2d_weight(x, grad, size, stride):
    template = _template(x, (grad.shape[1], x.shape[1], size, size))
    return _backward(grad, x, template, stride, (False, True))[1]


def _template(like, shape):
    layout = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


for _name, _function in (("conv2d", _conv2d), ("conv2d_input", _conv2d_input), ("conv2d_weight", _conv2d_weight)):
    LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cdn_kernels::{_name}", _function, lib=LIBRARY)


def _save(ctx, inputs, output):
    first, second, *_, ctx.stride = inputs
    ctx.save_for_backward(first, second)


def _conv2d_derivatives(ctx, g):
    x, weight = ctx.saved_tensors
    ops = torch.ops.cdn_kernels
    return (ops.conv2d_input(g, weight, x.shape, ctx.stride) if asked_for(ctx, 0) else None,
            ops.conv2d_weight(x, g, weight.shape[-1], ctx.stride) if asked_for(ctx, 1) else None, None)


def _conv2d_input_derivatives(ctx, t):
    grad, weight = ctx.saved_tensors
    ops = torch.ops.cdn_kernels
    return (ops.conv2d(t, weight, ctx.stride) if asked_for(ctx, 0) else None,
            ops.conv2d_weight(t, grad, weight.shape[-1], ctx.stride) if asked_for(ctx, 1) else None, None, None)


def _conv2d_weight_derivatives(ctx, t):
    x, grad = ctx.saved_tensors
    ops = torch.ops.cdn_kernels
    return (ops.conv2d_input(grad, t, x.shape, ctx.stride) if asked_for(ctx, 0) else None,
            ops.conv2d(x, t, ctx.stride) if asked_for(ctx, 1) else None, None, None)


for _name, _derivatives in (("conv2d", _conv2d_derivatives), ("conv2d_input", _conv2d_input_derivatives),
                            ("conv2d_weight", _conv2d_weight_derivatives)):
    torch.library.register_autograd(f"cdn_kernels::{_name}", _derivatives, setup_context=_save, lib=LIBRARY)
