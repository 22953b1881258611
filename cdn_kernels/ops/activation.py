"""The exact GELU, SiLU and ELU, with their first and second derivatives as kernels.

Registered with torch as ``gelu``, ``gelu_backward`` (phi' times the gradient, plus a source) and ``gelu_tangent``
(both derivatives of that), and the same of ``silu`` and ``elu``, so that ordinary autograd with ``create_graph=True``
runs one pass per sweep. Derivatives of higher order are those of the reference.
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
    of_one_tensor,
    register,
)
from cdn_kernels.ops.third_order import third_derivatives


def gelu(u: Tensor, *, impl: str = "auto") -> Tensor:
    """Apply the exact GELU, ``u Phi(u)``.

    Args:
        u: pre-activations, any shape; float32, float64, bfloat16 or float16.
        impl: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        The shape, dtype and layout of u (contiguous, unless u is channels last), computed in float32 (float64 for
        float64) and rounded once. Differentiable any number of times, from the third on by the
        reference.

    Raises:
        TypeError: u is not a tensor of these dtypes.
        RuntimeError: the chosen impl cannot run here.
    """
    check_tensor("u", u)
    return of_one_tensor("gelu", impl, u)


def silu(u: Tensor, *, impl: str = "auto") -> Tensor:
    """Apply SiLU, ``u sigmoid(u)`` (Hendrycks & Gimpel 2016; also called swish).

    Args:
        u: pre-activations, any shape; float32, float64, bfloat16 or float16.
        impl: "auto", "reference" or "cpu".

    Returns:
        As :func:`gelu` does.

    Raises:
        TypeError: u is not a tensor of these dtypes.
        RuntimeError: the chosen impl cannot run here.
    """
    check_tensor("u", u)
    return of_one_tensor("silu", impl, u)


def elu(u: Tensor, *, impl: str = "auto") -> Tensor:
    """Apply ELU, u for u > 0 and ``exp(u) - 1`` otherwise (Clevert et al. 2015, with alpha = 1).

    Args:
        u: pre-activations, any shape; float32, float64, bfloat16 or float16.
        impl: "auto", "reference" or "cpu".

    Returns:
        As :func:`gelu` does. The second derivative at 0 is 0.

    Raises:
        TypeError: u is not a tensor of these dtypes.
        RuntimeError: the chosen impl cannot run here.
    """
    check_tensor("u", u)
    return of_one_tensor("elu", impl, u)


def _run(
    name: str,
    backend: str,
    sweep: int,
    u: Tensor,
    grad: Tensor | None = None,
    other: Tensor | None = None,
    tangent_out: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    out = empty_result(u) if out is None else out
    last = is_channels_last(out)
    grad, other = (None if t is None else in_layout(t, last) for t in (grad, other))
    getattr(kernels(backend), name)(sweep, in_layout(u, last), grad, other, out, tangent_out)
    return out


def _save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, ctx.backend = inputs
    ctx.save_for_backward(u)


def _save_backward(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, grad, source, ctx.backend = inputs
    ctx.has_source = source is not None
    ctx.save_for_backward(u, grad)


def _register(name: str) -> None:
    """Register a function of each element with its derivatives, under its name among the kernels of backends."""
    LIBRARY.define(f"{name}(Tensor u, str backend) -> Tensor")
    LIBRARY.define(f"{name}_backward(Tensor u, Tensor grad, Tensor? source, str backend) -> Tensor")
    LIBRARY.define(f"{name}_tangent(Tensor u, Tensor grad, Tensor tangent, str backend) -> (Tensor, Tensor)")
    ops = torch.ops.cdn_kernels

    def forward(u: Tensor, backend: str) -> Tensor:
        return _run(name, backend, FORWARD, u)

    def backward(u: Tensor, grad: Tensor, source: Tensor | None, backend: str) -> Tensor:
        if source is None or len(source) == len(u):
            return _run(name, backend, BACKWARD, u, grad, source)
        out, count = empty_result(u), len(source)
        _run(name, backend, BACKWARD, u[:count], grad[:count], source, out=out[:count])
        _run(name, backend, BACKWARD, u[count:], grad[count:], out=out[count:])
        return out

    def tangent(u: Tensor, grad: Tensor, tangent: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        """Return (phi' tangent, phi'' grad tangent): the gradients of <phi' grad, tangent> by grad and by u."""
        by_grad = empty_result(u)
        return by_grad, _run(name, backend, TANGENT, u, grad, tangent, by_grad)

    def derivative(ctx: Context, g: Tensor) -> Gradients:
        return getattr(ops, f"{name}_backward")(*ctx.saved_tensors, g, None, ctx.backend), None

    def backward_derivatives(ctx: Context, t: Tensor) -> Gradients:
        by_grad, by_u = getattr(ops, f"{name}_tangent")(*ctx.saved_tensors, t, ctx.backend)
        return by_u, by_grad, t if ctx.has_source else None, None

    def save_tangent(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.set_materialize_grads(False)

    def tangent_derivatives(ctx: Context, t_grad: Tensor | None, t_u: Tensor | None) -> Gradients:
        u, grad, tangent = ctx.saved_tensors
        return *third_derivatives(getattr(reference, name), [u], grad, tangent, (t_grad, t_u)), None

    register(name, forward, lambda u, backend: empty_result(u))
    register(f"{name}_backward", backward, lambda u, grad, source, backend: empty_result(u))
    register(f"{name}_tangent", tangent, lambda u, grad, tangent, backend: (empty_result(u), empty_result(u)))
    own = f"cdn_kernels::{name}"
    torch.library.register_autograd(own, derivative, setup_context=_save, lib=LIBRARY)
    torch.library.register_autograd(f"{own}_backward", backward_derivatives, setup_context=_save_backward, lib=LIBRARY)
    torch.library.register_autograd(f"{own}_tangent", tangent_derivatives, setup_context=save_tangent, lib=LIBRARY)


for _name in ("gelu", "silu", "elu"):
    _register(_name)
