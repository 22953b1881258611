"""The softmax over the last dimension, whose second derivative is one pass, as attention needs it.

Registered with torch as ``softmax``, ``softmax_backward`` and ``softmax_tangent``, both derivatives of that. The first
two are torch's own kernels; torch's derivative of the second is ten passes over matrices that are attention's largest.
"""

from typing import Any

import torch
from torch import Tensor

from cdn_kernels.backends import cpu  # no other backend has kernels of it
from cdn_kernels.ops.common import LIBRARY, Context, Gradients, check_tensor, of_one_tensor, register
from cdn_kernels.ops.third_order import derivatives
from cdn_kernels.torch_private import softmax_backward

LIBRARY.define("softmax(Tensor x, str backend) -> Tensor")
LIBRARY.define("softmax_backward(Tensor p, Tensor grad, str backend) -> Tensor")
LIBRARY.define("softmax_tangent(Tensor p, Tensor grad, Tensor tangent, str backend) -> (Tensor, Tensor)")


def softmax(x: Tensor, *, impl: str = "auto") -> Tensor:
    """Return the softmax over the last dimension.

    Args:
        x: [..., N]; float32, float64, bfloat16 or float16.
        impl: "auto", "reference" or "cpu".

    Returns:
        [..., N], contiguous, in the dtype of x, computed in float32 (float64 for float64). Differentiable any number of
        times, from the third on in torch's operations.

    Raises:
        TypeError, ValueError: x is not a tensor of these dtypes, or has no dimension.
        RuntimeError: the chosen impl cannot run here.
    """
    check_tensor("x", x)
    if not x.dim():
        raise ValueError("x must have a dimension, got a 0-d tensor")
    return of_one_tensor("softmax", impl, x)


def _forward(x: Tensor, backend: str) -> Tensor:
    return torch.ops.aten.softmax(x.contiguous(), -1)


def _backward(p: Tensor, grad: Tensor, backend: str) -> Tensor:
    return softmax_backward(p, grad.contiguous())


def _tangent(p: Tensor, grad: Tensor, tangent: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Return (p (t - <p, t>), g t - g <p, t> - t <p, g>): the gradients of <g_x, t> by g and by p."""
    by_grad, by_p = torch.empty_like(p), torch.empty_like(p)
    if p.numel():
        cpu.softmax_tangent(p, grad.contiguous(), tangent.contiguous(), by_p, by_grad)
    return by_grad, by_p


def _empty(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


register("softmax", _forward, _empty)
register("softmax_backward", _backward, _empty)
register("softmax_tangent", _tangent, lambda p, *_: (_empty(p), _empty(p)))


def _save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[-1]
    ctx.save_for_backward(output)


def _save_backward(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _save_tangent(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.set_materialize_grads(False)


def _derivative(ctx: Context, g: Tensor) -> Gradients:
    return torch.ops.cdn_kernels.softmax_backward(*ctx.saved_tensors, g, ctx.backend), None


def _backward_derivatives(ctx: Context, t: Tensor) -> Gradients:
    by_grad, by_p = torch.ops.cdn_kernels.softmax_tangent(*ctx.saved_tensors, t, ctx.backend)
    return by_p, by_grad, None


def _tangent_derivatives(ctx: Context, t_grad: Tensor | None, t_p: Tensor | None) -> Gradients:
    return *derivatives(_tangents, ctx.saved_tensors, (t_grad, t_p)), None


def _tangents(p: Tensor, g: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the kernel of the second order does, in torch's operations."""
    of_g, of_t = ((p * x).sum(-1, keepdim=True) for x in (g, t))
    return p * (t - of_t), g * t - g * of_t - t * of_g


torch.library.register_autograd("cdn_kernels::softmax", _derivative, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd(
    "cdn_kernels::softmax_backward", _backward_derivatives, setup_context=_save_backward, lib=LIBRARY
)
torch.library.register_autograd(
    "cdn_kernels::softmax_tangent", _tangent_derivatives, setup_context=_save_tangent, lib=LIBRARY
)
