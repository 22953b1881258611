"""Residual + GELU + group normalization in one pass per sweep, plain and scale-preserving.

Registered with torch as ``gelu_group_norm`` (which also returns the pre-activation v = x + residual, through which
second derivatives flow back), ``gelu_group_norm_backward`` and ``gelu_group_norm_tangent``, the derivative of that.
The second derivative reaches v as a gradient of its own, and the backward pass adds it on the way: the adjoint sweep
is the ordinary backward plus that source.
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
    as_input,
    asked_for,
    check_tensor,
    empty_result,
    in_layout,
    is_channels_last,
    no_third_order,
    register,
    resolve_untransformed,
)
from cdn_kernels.reference import compute_dtype

LIBRARY.define(
    "gelu_group_norm(Tensor x, Tensor? residual, Tensor gain, int groups, float eps, "
    "bool scale_preserving, str backend) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "gelu_group_norm_backward(Tensor v, Tensor statistics, Tensor gain, Tensor grad, Tensor? source, "
    "int groups, float eps, bool scale_preserving, bool with_gain, "
    "str backend) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "gelu_group_norm_tangent(Tensor v, Tensor statistics, Tensor gain, Tensor grad, Tensor tangent, "
    "int groups, float eps, bool scale_preserving, bool with_gain, "
    "str backend) -> (Tensor, Tensor, Tensor)"
)


def gelu_group_norm(
    x: Tensor,
    weight: Tensor,
    groups: int,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-3,
    scale_preserving: bool = True,
    impl: str = "auto",
) -> Tensor:
    """Add a residual, apply the exact GELU, and normalize groups of channels, without bias.

    The formulas are those of :func:`cdn_kernels.reference.gelu_group_norm`.

    Args:
        x: [B, C, H, W], C divisible by groups; float32, float64, bfloat16 or float16.
        weight: gain [C].
        groups: number of groups of channels.
        residual: None or [B, C, H, W]; the sum is rounded to the dtype of x before anything else.
        eps: regularization of the variance, > 0; absolute (plain) or relative to its mean over groups.
        scale_preserving: which of the two norms.
        impl: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [B, C, H, W] in the dtype of x and its layout (contiguous, unless x is channels last); statistics are taken in
        float32, or float64 for float64. Differentiable twice; impl="reference" any number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range.
        RuntimeError: the chosen impl cannot run here.
    """
    _check(x, weight, groups, residual, eps)
    backend = resolve_untransformed("gelu_group_norm", impl, x)
    if backend == "reference":
        return reference.gelu_group_norm(
            x, weight, groups, residual=residual, eps=eps, scale_preserving=scale_preserving
        )
    gain = as_input(weight.to(compute_dtype(x.dtype)))
    return torch.ops.cdn_kernels.gelu_group_norm(x, residual, gain, groups, eps, scale_preserving, backend)[0]


def _check(x: Tensor, weight: Tensor, groups: int, residual: Tensor | None, eps: float) -> None:
    check_tensor("x", x, 4)
    check_tensor("weight", weight, 1)
    channels = x.shape[1]
    if 0 in x.shape[1:]:
        raise ValueError(f"x must have channels and pixels, got {list(x.shape)}")
    if weight.shape[0] != channels:
        raise ValueError(f"weight must have one gain per channel, [{channels}], got {list(weight.shape)}")
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, got {groups!r}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps!r}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual must have shape {list(x.shape)} and dtype {x.dtype} like x, got "
            f"{list(residual.shape)} and {residual.dtype}"
        )
    for name, tensor in (("weight", weight), ("residual", residual)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")


# ------------------------------------------------------------------------------------------------------------
# Kernels
# ------------------------------------------------------------------------------------------------------------


def _empty_outputs(
    x: Tensor, residual: Tensor | None, gain: Tensor, groups: int, eps: float, scale_preserving: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    v = empty_result(x) if residual is not None else x.new_empty(0)
    return empty_result(x), v, gain.new_empty(x.shape[0], 4 * groups + 1)


def _forward(
    x: Tensor, residual: Tensor | None, gain: Tensor, groups: int, eps: float, scale_preserving: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    z, v, statistics = _empty_outputs(x, residual, gain, groups, eps, scale_preserving, backend)
    last = is_channels_last(z)
    x = in_layout(x, last)
    if residual is not None:
        residual = in_layout(residual, last)
    kernels(backend).gelu_norm(
        FORWARD,
        x,
        gain.contiguous(),
        groups,
        eps,
        scale_preserving,
        last,
        statistics=statistics,
        out=z,
        residual=residual,
        sum=v,
    )
    return z, v, statistics


def _empty_gradients(
    v: Tensor,
    statistics: Tensor,
    gain: Tensor,
    grad: Tensor,
    source: Tensor | None,
    groups: int,
    eps: float,
    scale_preserving: bool,
    with_gain: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return empty_result(v), gain.new_empty(gain.shape[0] if with_gain else 0)


def _backward(
    v: Tensor,
    statistics: Tensor,
    gain: Tensor,
    grad: Tensor,
    source: Tensor | None,
    groups: int,
    eps: float,
    scale_preserving: bool,
    with_gain: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    out = empty_result(v)
    last = is_channels_last(out)
    v, grad = in_layout(v, last), in_layout(grad, last)
    source = None if source is None else in_layout(source, last)
    shares = gain.new_empty(v.shape[0], gain.shape[0]) if with_gain else None
    kernels(backend).gelu_norm(
        BACKWARD,
        v,
        gain.contiguous(),
        groups,
        eps,
        scale_preserving,
        last,
        statistics=statistics,
        out=out,
        grad=grad,
        source=source,
        gain_grad=shares,
    )
    return out, gain.new_empty(0) if shares is None else shares.sum(0)


def _empty_tangents(
    v: Tensor,
    statistics: Tensor,
    gain: Tensor,
    grad: Tensor,
    tangent: Tensor,
    groups: int,
    eps: float,
    scale_preserving: bool,
    with_gain: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_result(v), empty_result(v), gain.new_empty(gain.shape[0] if with_gain else 0)


def _tangent(
    v: Tensor,
    statistics: Tensor,
    gain: Tensor,
    grad: Tensor,
    tangent: Tensor,
    groups: int,
    eps: float,
    scale_preserving: bool,
    with_gain: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (zdot, source, dgain): the gradients of <g_v, tangent> by grad, v and gain."""
    zdot = empty_result(v)
    source = torch.empty_like(zdot)
    last = is_channels_last(zdot)
    v, grad, tangent = (in_layout(t, last) for t in (v, grad, tangent))
    shares = gain.new_empty(v.shape[0], gain.shape[0]) if with_gain else None
    kernels(backend).gelu_norm(
        TANGENT,
        v,
        gain.contiguous(),
        groups,
        eps,
        scale_preserving,
        last,
        statistics=statistics,
        out=source,
        grad=grad,
        tangent=tangent,
        tangent_out=zdot,
        gain_grad=shares,
    )
    return zdot, source, gain.new_empty(0) if shares is None else shares.sum(0)


for _name, _kernel, _fake in (
    ("", _forward, _empty_outputs),
    ("_backward", _backward, _empty_gradients),
    ("_tangent", _tangent, _empty_tangents),
):
    register(f"gelu_group_norm{_name}", _kernel, _fake)


# ------------------------------------------------------------------------------------------------------------
# Derivatives
# ------------------------------------------------------------------------------------------------------------


def _save_forward(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, gain, *ctx.options, ctx.backend = inputs
    _, v, statistics = output
    ctx.added = residual is not None
    ctx.save_for_backward(v if ctx.added else x, statistics, gain)
    ctx.mark_non_differentiable(statistics, *([] if ctx.added else [v]))
    ctx.set_materialize_grads(False)


def _forward_derivatives(ctx: Context, g_z: Tensor | None, g_v: Tensor | None, g_statistics: None) -> Gradients:
    if g_z is None:
        return g_v, g_v if ctx.added else None, None, None, None, None, None
    v, statistics, gain = ctx.saved_tensors
    with_gain = asked_for(ctx, 2, missing=not ctx.added)
    g, g_gain = torch.ops.cdn_kernels.gelu_group_norm_backward(
        v, statistics, gain, g_z, g_v, *ctx.options, with_gain, ctx.backend
    )
    return g, g if ctx.added else None, g_gain if with_gain else None, None, None, None, None


def _save_backward(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    v, statistics, gain, grad, source, *ctx.options, ctx.with_gain, ctx.backend = inputs
    ctx.has_source = source is not None
    ctx.save_for_backward(v, statistics, gain, grad)
    ctx.set_materialize_grads(False)
    if not ctx.with_gain:
        ctx.mark_non_differentiable(output[1])


def _backward_derivatives(ctx: Context, t: Tensor | None, t_gain: Tensor | None) -> Gradients:
    """Return the gradients of <g_v, t> + <g_gain, t_gain> by v, gain, the gradient of z and the source."""
    v, statistics, gain, grad = ctx.saved_tensors
    ops = torch.ops.cdn_kernels
    by_v = by_gain = by_grad = None
    if t is not None:
        with_gain = asked_for(ctx, 2)
        by_grad, by_v, by_gain = ops.gelu_group_norm_tangent(
            v, statistics, gain, grad, t, *ctx.options, with_gain, ctx.backend
        )
        by_gain = by_gain if with_gain else None
    if t_gain is not None and ctx.with_gain:
        # z is linear in the gain: g_gain is z with the gain t_gain, against the gradient.
        more_grad = ops.gelu_group_norm(v, None, t_gain, *ctx.options, ctx.backend)[0]
        more_v, _ = ops.gelu_group_norm_backward(v, statistics, t_gain, grad, None, *ctx.options, False, ctx.backend)
        by_grad = more_grad if by_grad is None else by_grad + more_grad
        by_v = more_v if by_v is None else by_v + more_v
    return by_v, None, by_gain, by_grad, t if ctx.has_source else None, None, None, None, None, None


torch.library.register_autograd(
    "cdn_kernels::gelu_group_norm", _forward_derivatives, setup_context=_save_forward, lib=LIBRARY
)
torch.library.register_autograd(
    "cdn_kernels::gelu_group_norm_backward", _backward_derivatives, setup_context=_save_backward, lib=LIBRARY
)
torch.library.register_autograd("cdn_kernels::gelu_group_norm_tangent", no_third_order, lib=LIBRARY)
