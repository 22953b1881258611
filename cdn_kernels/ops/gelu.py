"""The exact GELU, with its first and second derivatives as kernels.

Registered with torch as ``gelu``, ``gelu_backward`` (phi' times the gradient, plus a source) and ``gelu_tangent``
(both derivatives of that), so that ordinary autograd with ``create_graph=True`` runs one pass per sweep.
"""

from typing import Any

import torch
from torch import Tensor

from cdn_kernels import reference
from cdn_kernels.backends.dispatch import kernels
from cdn_kernels.backends.interface import BACKWARD, FORWARD, TANGENT
from cdn_kernels.ops.common import (
    LIBRARY,
    Context,
    Gradients,
    check_tensor,
    empty_result,
    in_layout,
    is_channels_last,
    no_third_order,
    register,
    resolve_untransformed,
)

LIBRARY.define("gelu(Tensor u, str backend) -> Tensor")
LIBRARY.define("gelu_backward(Tensor u, Tensor grad, Tensor? source, str backend) -> Tensor")
LIBRARY.define("gelu_tangent(Tensor u, Tensor grad, Tensor tangent, str backend) -> (Tensor, Tensor)")


def gelu(u: Tensor, *, impl: str = "auto") -> Tensor:
    """Apply the exact GELU, ``u Phi(u)``.

    Args:
        u: pre-activations, any shape; float32, float64, bfloat16 or float16.
        impl: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        The shape, dtype and layout of u (contiguous, unless u is channels last), computed in float32 (float64 for
        float64) and rounded once. Differentiable twice; impl="reference" any number of times.

    Raises:
        TypeError: u is not a tensor of these dtypes.
        RuntimeError: the chosen impl cannot run here.
    """
    check_tensor("u", u)
    backend = resolve_untransformed("gelu", impl, u)
    if backend == "reference":
        return reference.gelu(u)
    return torch.ops.cdn_kernels.gelu(u, backend)


def _gelu(u: Tensor, backend: str) -> Tensor:
    return _run(backend, FORWARD, u)


def _gelu_backward(u: Tensor, grad: Tensor, source: Tensor | None, backend: str) -> Tensor:
    return _run(backend, BACKWARD, u, grad, source)


def _gelu_tangent(u: Tensor, grad: Tensor, tangent: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Return (phi' tangent, phi'' grad tangent): the gradients of <phi' grad, tangent> by grad and by u."""
    by_grad = empty_result(u)
    by_u = _run(backend, TANGENT, u, grad, tangent, by_grad)
    return by_grad, by_u


def _run(
    backend: str,
    sweep: int,
    u: Tensor,
    grad: Tensor | None = None,
    other: Tensor | None = None,
    tangent_out: Tensor | None = None,
) -> Tensor:
    out = empty_result(u)
    last = is_channels_last(out)
    grad, other = (None if t is None else in_layout(t, last) for t in (grad, other))
    kernels(backend).gelu(sweep, in_layout(u, last), grad, other, out, tangent_out)
    return out


register("gelu", _gelu, lambda u, backend: empty_result(u))
register("gelu_backward", _gelu_backward, lambda u, grad, source, backend: empty_result(u))
register("gelu_tangent", _gelu_tangent, lambda u, grad, tangent, backend: (empty_result(u), empty_result(u)))


def _save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, ctx.backend = inputs
    ctx.save_for_backward(u)


def _save_backward(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, grad, source, ctx.backend = inputs
    ctx.has_source = source is not None
    ctx.save_for_backward(u, grad)


def _backward_derivatives(ctx: Context, t: Tensor) -> Gradients:
    by_grad, by_u = torch.ops.cdn_kernels.gelu_tangent(*ctx.saved_tensors, t, ctx.backend)
    return by_u, by_grad, t if ctx.has_source else None, None


def _derivative(ctx: Context, g: Tensor) -> Gradients:
    return torch.ops.cdn_kernels.gelu_backward(*ctx.saved_tensors, g, None, ctx.backend), None


torch.library.register_autograd("cdn_kernels::gelu", _derivative, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd(
    "cdn_kernels::gelu_backward", _backward_derivatives, setup_context=_save_backward, lib=LIBRARY
)
torch.library.register_autograd("cdn_kernels::gelu_tangent", no_third_order, lib=LIBRARY)
