"""Group and batch normalization with gain and bias, as torch.nn has them, with their derivatives as kernels.

Registered with torch as ``group_norm``, ``group_norm_backward`` and ``group_norm_tangent``, the derivative of that by
the image, its gradient and the gain; without groups, every channel of all images is one: batch normalization. torch's
own second derivative is dozens of passes over the image.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from cdn_kernels import reference
from cdn_kernels.backends import cpu  # no other backend has kernels of it
from cdn_kernels.backends.interface import BACKWARD, FORWARD, NO_GROUPS, TANGENT, shares_of
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
    register,
    resolve_untransformed,
)
from cdn_kernels.ops.third_order import third_derivatives
from cdn_kernels.reference import compute_dtype

LIBRARY.define(
    "group_norm(Tensor x, Tensor gain, Tensor? bias, int groups, float eps, str backend) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "group_norm_backward(Tensor x, Tensor statistics, Tensor gain, Tensor grad, int groups, float eps, "
    "bool with_parameters, str backend) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "group_norm_tangent(Tensor x, Tensor statistics, Tensor gain, Tensor grad, Tensor tangent, int groups, float eps, "
    "bool with_gain, str backend) -> (Tensor, Tensor, Tensor)"
)


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, *, impl: str = "auto"
) -> Tensor:
    """Normalize groups of channels to mean 0 and variance 1, and apply a gain and a bias (Wu & He 2018).

    Args:
        x: [B, C, H, W], C divisible by groups; float32, float64, bfloat16 or float16.
        groups: number of groups of channels.
        weight: gain [C].
        bias: None or [C].
        eps: added to the variance, > 0.
        impl: "auto", "reference" or "cpu".

    Returns:
        [B, C, H, W] in the dtype of x and its layout (contiguous, unless x is channels last); statistics are taken in
        float32, or float64 for float64. Differentiable any number of
        times, from the third on by the reference.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range.
        RuntimeError: the chosen impl cannot run here.
    """
    _check(x, groups, weight, bias, eps)
    backend = resolve_untransformed("group_norm", impl, x)
    if backend == "reference":
        return reference.group_norm(x, groups, weight, bias, eps)
    dtype = compute_dtype(x.dtype)
    gain, added = as_input(weight.to(dtype)), None if bias is None else as_input(bias.to(dtype))
    return torch.ops.cdn_kernels.group_norm(x, gain, added, groups, eps, backend)[0]


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize every channel over all images, as torch does it in training, and return mean and variance beside it.

    Args:
        x: [B, C, H, W], more than no image, on a CPU that has kernels.
        gain, bias, eps: as for :func:`group_norm`.

    Returns:
        (z, mean, variance): as x, and [C] without a graph in the dtype that is computed in.
    """
    dtype = compute_dtype(x.dtype)
    added = None if bias is None else as_input(bias.to(dtype))
    z, statistics = torch.ops.cdn_kernels.group_norm(x, as_input(gain.to(dtype)), added, NO_GROUPS, eps, "cpu")
    pivot, mean, r, k = statistics[0, :-1].chunk(4)
    return z, pivot + mean, k / r.square()


def _check(x: Tensor, groups: int, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    check_tensor("x", x, 4)
    channels = x.shape[1]
    if 0 in x.shape[1:]:
        raise ValueError(f"x must have channels and pixels, got {list(x.shape)}")
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, got {groups!r}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps!r}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None or name == "weight":
            _check_parameter(name, tensor, x)


def _check_parameter(name: str, parameter: object, x: Tensor) -> None:
    check_tensor(name, parameter, 1)
    assert isinstance(parameter, Tensor)
    if parameter.shape[0] != x.shape[1]:
        raise ValueError(f"{name} must have one number per channel, [{x.shape[1]}], got {list(parameter.shape)}")
    if parameter.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {parameter.device}")


# ------------------------------------------------------------------------------------------------------------
# Kernels
# ------------------------------------------------------------------------------------------------------------


def _empty_outputs(
    x: Tensor, gain: Tensor, bias: Tensor | None, groups: int, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    rows, scalars = (1, 4 * x.shape[1]) if groups == NO_GROUPS else (x.shape[0], 4 * groups)
    return empty_result(x), gain.new_empty(rows, scalars + 1)


def _forward(
    x: Tensor, gain: Tensor, bias: Tensor | None, groups: int, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    z, statistics = _empty_outputs(x, gain, bias, groups, eps, backend)
    last = is_channels_last(z)
    added = None if bias is None else bias.contiguous()
    cpu.group_norm(
        FORWARD, in_layout(x, last), gain.contiguous(), groups, eps, last, statistics=statistics, out=z, bias=added
    )
    return z, statistics


def _empty_gradients(
    x: Tensor,
    statistics: Tensor,
    gain: Tensor,
    grad: Tensor,
    groups: int,
    eps: float,
    with_parameters: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    count = gain.shape[0] if with_parameters else 0
    return empty_result(x), gain.new_empty(count), gain.new_empty(count)


def _backward(
    x: Tensor,
    statistics: Tensor,
    gain: Tensor,
    grad: Tensor,
    groups: int,
    eps: float,
    with_parameters: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    out = empty_result(x)
    last = is_channels_last(out)
    shares = gain.new_empty(2, shares_of(x.shape[0], groups), gain.shape[0]) if with_parameters else None
    cpu.group_norm(
        BACKWARD,
        in_layout(x, last),
        gain.contiguous(),
        groups,
        eps,
        last,
        statistics=statistics,
        out=out,
        grad=in_layout(grad, last),
        gain_grad=None if shares is None else shares[0],
        bias_grad=None if shares is None else shares[1],
    )
    if shares is None:
        return out, gain.new_empty(0), gain.new_empty(0)
    return out, shares[0].sum(0), shares[1].sum(0)


def _empty_tangents(
    x: Tensor,
    statistics: Tensor,
    gain: Tensor,
    grad: Tensor,
    tangent: Tensor,
    groups: int,
    eps: float,
    with_gain: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_result(x), empty_result(x), gain.new_empty(gain.shape[0] if with_gain else 0)


def _tangent(
    x: Tensor,
    statistics: Tensor,
    gain: Tensor,
    grad: Tensor,
    tangent: Tensor,
    groups: int,
    eps: float,
    with_gain: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (zdot, source, dgain): the gradients of <g_x, tangent> by grad, x and gain."""
    zdot = empty_result(x)
    source = torch.empty_like(zdot)
    last = is_channels_last(zdot)
    shares = gain.new_empty(shares_of(x.shape[0], groups), gain.shape[0]) if with_gain else None
    cpu.group_norm(
        TANGENT,
        in_layout(x, last),
        gain.contiguous(),
        groups,
        eps,
        last,
        statistics=statistics,
        out=source,
        grad=in_layout(grad, last),
        tangent=in_layout(tangent, last),
        tangent_out=zdot,
        gain_grad=shares,
    )
    return zdot, source, gain.new_empty(0) if shares is None else shares.sum(0)


for _name, _kernel, _fake in (
    ("", _forward, _empty_outputs),
    ("_backward", _backward, _empty_gradients),
    ("_tangent", _tangent, _empty_tangents),
):
    register(f"group_norm{_name}", _kernel, _fake)


# ------------------------------------------------------------------------------------------------------------
# Derivatives
# ------------------------------------------------------------------------------------------------------------


def _save_forward(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gain, bias, *ctx.options, ctx.backend = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, output[1], gain)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _forward_derivatives(ctx: Context, g: Tensor | None, g_statistics: None) -> Gradients:
    if g is None:
        return None, None, None, None, None, None
    x, statistics, gain = ctx.saved_tensors
    with_gain, with_bias = asked_for(ctx, 1), ctx.has_bias and asked_for(ctx, 2)
    by_x, by_gain, by_bias = torch.ops.cdn_kernels.group_norm_backward(
        x, statistics, gain, g, *ctx.options, with_gain or with_bias, ctx.backend
    )
    return by_x, by_gain if with_gain else None, by_bias if with_bias else None, None, None, None


def _save_backward(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, statistics, gain, grad, *ctx.options, ctx.with_parameters, ctx.backend = inputs
    ctx.save_for_backward(x, statistics, gain, grad)
    ctx.set_materialize_grads(False)
    if not ctx.with_parameters:
        ctx.mark_non_differentiable(*output[1:])


def _backward_derivatives(ctx: Context, t: Tensor | None, t_gain: Tensor | None, t_bias: Tensor | None) -> Gradients:
    """Return the gradients of <g_x, t> + <g_gain, t_gain> + <g_bias, t_bias> by x, gain and the gradient of z."""
    x, statistics, gain, grad = ctx.saved_tensors
    ops = torch.ops.cdn_kernels
    by_x = by_gain = by_grad = None
    if t is not None:
        with_gain = asked_for(ctx, 2)
        by_grad, by_x, by_gain = ops.group_norm_tangent(
            x, statistics, gain, grad, t, *ctx.options, with_gain, ctx.backend
        )
        by_gain = by_gain if with_gain else None
    if t_gain is not None and ctx.with_parameters:
        # z is linear in the gain: g_gain is z with the gain t_gain, against the gradient.
        more_grad = ops.group_norm(x, t_gain, None, *ctx.options, ctx.backend)[0]
        more_x, *_ = ops.group_norm_backward(x, statistics, t_gain, grad, *ctx.options, False, ctx.backend)
        by_grad = more_grad if by_grad is None else by_grad + more_grad
        by_x = more_x if by_x is None else by_x + more_x
    if t_bias is not None and ctx.with_parameters:  # g_bias is the sum of the gradient
        more_grad = t_bias.to(grad.dtype).view(1, -1, 1, 1).expand_as(grad)
        by_grad = more_grad if by_grad is None else by_grad + more_grad
    return by_x, None, by_gain, by_grad, None, None, None, None


def _save_tangent(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, statistics, gain, grad, tangent, ctx.groups, ctx.eps, ctx.with_gain, backend = inputs
    ctx.save_for_backward(x, gain, grad, tangent)
    ctx.set_materialize_grads(False)
    if not ctx.with_gain:
        ctx.mark_non_differentiable(output[2])


def _tangent_derivatives(ctx: Context, t_grad: Tensor | None, t_x: Tensor | None, t_gain: Tensor | None) -> Gradients:
    x, gain, grad, tangent = ctx.saved_tensors
    norm = reference.batch_norm if ctx.groups == NO_GROUPS else partial(reference.group_norm, groups=ctx.groups)
    function = lambda x, gain: norm(x, weight=gain, bias=None, eps=ctx.eps)
    grads = t_grad, t_x, t_gain if ctx.with_gain else None
    by_x, by_gain, by_grad, by_tangent = third_derivatives(function, [x, gain], grad, tangent, grads)
    return by_x, None, by_gain, by_grad, by_tangent, None, None, None, None


torch.library.register_autograd(
    "cdn_kernels::group_norm", _forward_derivatives, setup_context=_save_forward, lib=LIBRARY
)
torch.library.register_autograd(
    "cdn_kernels::group_norm_backward", _backward_derivatives, setup_context=_save_backward, lib=LIBRARY
)
torch.library.register_autograd(
    "cdn_kernels::group_norm_tangent", _tangent_derivatives, setup_context=_save_tangent, lib=LIBRARY
)
