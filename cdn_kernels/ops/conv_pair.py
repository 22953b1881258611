"""Two convolutions with a GELU between them, whose backward passes end in the GELU's derivative.

The second convolution takes the pre-activation u as its input, beside h = phi(u), which the first has written already:
its gradient by u is phi'(u) times that by h, and a kernel can multiply while it still holds the latter. Where h is
needed again, its gradient goes to u as well, so that derivatives of every order stay whole.
"""
import torch

from .. import reference
from . import convolve
from .common import LIBRARY, asked_for, register, resolve_untransformed
from .conv import as_autocast, check_convolution, check_filters, fastest_for

LIBRARY.define("conv2d_of_gelu(Tensor u, Tensor h, Tensor weight, int stride, str backend) -> Tensor")
LIBRARY.define("conv2d_of_gelu_input(Tensor grad, Tensor weight, Tensor u, int stride, bool keep, str backend)"
               " -> (Tensor, Tensor)")
LIBRARY.define("conv2d_of_gelu_weight(Tensor u, Tensor h, Tensor grad, int size, int stride, str backend) -> Tensor")


def conv2d_gelu_conv2d(x, first, second, stride=1, *, impl="auto"):
    """Convolve without bias, apply the exact GELU, and convolve again: the residual branch of a block.

    It computes what :func:`cdn_kernels.conv2d` of :func:`cdn_kernels.conv2d_gelu` does, and saves a pass over memory in
    every backward pass where a kernel has the GELU's derivative in its epilogue.

    Args:
        x: images [B, I, H, W].
        first: filters [M, I, k, k]; second: filters [O, M, l, l]; k and l odd, with "same" padding. Under autocast, all
            are rounded to its dtype.
        stride: of the first convolution, 1 or more; the second has 1.
        impl: "auto", "reference", "cpu" or "triton".

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
    keep = torch.is_grad_enabled() and (x.requires_grad or first.requires_grad)
    ops = torch.ops.cdn_kernels
    h, u = ops.conv2d_gelu(x, first, stride, keep, backend)
    if not keep:
        return ops.conv2d(h, second, 1, backend)
    return ops.conv2d_of_gelu(u, h.detach(), second, 1, backend)


def _forward(u, h, weight, stride, backend):
    return convolve.forward(h, weight, stride, backend)


def _by_preactivation(grad, weight, u, stride, keep, backend):
    out, product = convolve.by_preactivation(grad, weight, u, stride, keep, backend)
    return out, out.new_empty(0) if product is None else product


def _empty_by_preactivation(grad, weight, u, stride, keep, backend):
    out = convolve.empty_by_input(grad, weight, u.shape, stride, backend)
    return out, torch.empty_like(out) if keep else out.new_empty(0)


def _by_weight(u, h, grad, size, stride, backend):
    return convolve.by_weight(h, grad, size, stride, backend)


register("conv2d_of_gelu", _forward, lambda u, *rest: convolve.empty_forward(*rest))
register("conv2d_of_gelu_input", _by_preactivation, _empty_by_preactivation)
register("conv2d_of_gelu_weight", _by_weight, lambda u, *rest: convolve.empty_by_weight(*rest))


def _save(ctx, inputs, output):
    u, h, third, *_, stride, backend = inputs
    ctx.options = stride, backend
    ctx.save_for_backward(u, h, third)


def _save_input(ctx, inputs, output):
    grad, weight, u, stride, keep, backend = inputs
    ctx.options = stride, backend
    out, product = output
    ctx.save_for_backward(grad, weight, u, product)
    ctx.mark_non_differentiable(product)
    ctx.set_materialize_grads(False)


def _input(grad, weight, u, options):
    stride, backend = options
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (grad, weight, u))
    return torch.ops.cdn_kernels.conv2d_of_gelu_input(grad, weight, u, stride, keep, backend)[0]


def _derivatives(ctx, g):
    u, h, weight = ctx.saved_tensors
    by_u = _input(g, weight, u, ctx.options) if asked_for(ctx, 0) else None
    by_weight = torch.ops.cdn_kernels.conv2d_of_gelu_weight(u, h, g, weight.shape[-1], *ctx.options) \
        if asked_for(ctx, 2) else None
    return by_u, None, by_weight, None, None


def _weight_derivatives(ctx, t):
    u, h, grad = ctx.saved_tensors
    by_u = _input(grad, t, u, ctx.options) if asked_for(ctx, 0) else None
    by_grad = torch.ops.cdn_kernels.conv2d_of_gelu(u, h, t, *ctx.options) if asked_for(ctx, 2) else None
    return by_u, None, by_grad, None, None, None


def _input_derivatives(ctx, t, _):
    """Differentiate phi'(u) p, with p the gradient by h that was kept."""
    grad, weight, u, product = ctx.saved_tensors
    if t is None:
        return (None,) * 6
    ops = torch.ops.cdn_kernels
    along, by_u = ops.gelu_tangent(u, product, t, ctx.options[1])
    return (ops.conv2d(along, weight, *ctx.options) if asked_for(ctx, 0) else None,
            ops.conv2d_weight(along, grad, weight.shape[-1], *ctx.options) if asked_for(ctx, 1) else None,
            by_u, None, None, None)


for _name, _backward, _setup in (
        ("conv2d_of_gelu", _derivatives, _save), ("conv2d_of_gelu_input", _input_derivatives, _save_input),
        ("conv2d_of_gelu_weight", _weight_derivatives, _save)):
    torch.library.register_autograd(f"cdn_kernels::{_name}", _backward, setup_context=_setup, lib=LIBRARY)
