"""The exact GELU, with its first and second derivatives as kernels.

Registered with torch as ``gelu``, ``gelu_backward`` (phi' times the gradient, plus a source) and ``gelu_tangent``
(both derivatives of that), so that ordinary autograd with ``create_graph=True`` runs one pass per sweep.
"""
import torch

from .. import reference
from ..backends import cpu
from .common import LIBRARY, check_tensor, empty_result, in_layout, is_channels_last, no_third_order, \
    resolve_untransformed

LIBRARY.define("gelu(Tensor u) -> Tensor")
LIBRARY.define("gelu_backward(Tensor u, Tensor grad, Tensor? source) -> Tensor")
LIBRARY.define("gelu_tangent(Tensor u, Tensor grad, Tensor tangent) -> (Tensor, Tensor)")


def gelu(u, *, impl="auto"):
    """Apply the exact GELU, ``u Phi(u)``.

    Args:
        u: pre-activations, any shape; float32, float64, bfloat16 or float16.
        impl: "auto", "reference" or "cpu".

    Returns:
        The shape, dtype and layout of u (contiguous, unless u is channels last), computed in float32 (float64 for
        float64) and rounded once. Differentiable twice; impl="reference" any number of times.

    Raises:
        TypeError: u is not a tensor of these dtypes.
        RuntimeError: the chosen impl cannot run here.
    """
    check_tensor("u", u)
    if resolve_untransformed("gelu", impl, u) == "reference":
        return reference.gelu(u)
    return torch.ops.cdn_kernels.gelu(u)


def _gelu(u):
    return _run(cpu.FORWARD, u)[0]


def _gelu_backward(u, grad, source):
    return _run(cpu.BACKWARD, u, grad, source)[0]


def _gelu_tangent(u, grad, tangent):
    """Return (phi' tangent, phi'' grad tangent): the gradients of <phi' grad, tangent> by grad and by u."""
    out, tangent_out = _run(cpu.TANGENT, u, grad, tangent)
    return tangent_out, out


def _run(sweep, u, *others):
    out = empty_result(u)
    tangent_out = torch.empty_like(out) if sweep == cpu.TANGENT else None
    u, *others = (None if t is None else in_layout(t, is_channels_last(out)) for t in (u, *others))
    cpu.gelu(sweep, u, *(others + [None, None])[:2], out, tangent_out)
    return out, tangent_out


LIBRARY.impl("gelu", _gelu, "CPU")
LIBRARY.impl("gelu_backward", _gelu_backward, "CPU")
LIBRARY.impl("gelu_tangent", _gelu_tangent, "CPU")
torch.library.register_fake("cdn_kernels::gelu", empty_result, lib=LIBRARY)
torch.library.register_fake("cdn_kernels::gelu_backward", lambda u, grad, source: empty_result(u), lib=LIBRARY)
torch.library.register_fake("cdn_kernels::gelu_tangent",
                            lambda u, grad, tangent: (empty_result(u), empty_result(u)), lib=LIBRARY)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _save_backward(ctx, inputs, output):
    u, grad, source = inputs
    ctx.has_source = source is not None
    ctx.save_for_backward(u, grad)


def _backward_derivatives(ctx, t):
    by_grad, by_u = torch.ops.cdn_kernels.gelu_tangent(*ctx.saved_tensors, t)
    return by_u, by_grad, t if ctx.has_source else None


torch.library.register_autograd(
    "cdn_kernels::gelu", lambda ctx, g: torch.ops.cdn_kernels.gelu_backward(*ctx.saved_tensors, g, None),
    setup_context=_save, lib=LIBRARY)
torch.library.register_autograd("cdn_kernels::gelu_backward", _backward_derivatives, setup_context=_save_backward,
                                lib=LIBRARY)
torch.library.register_autograd("cdn_kernels::gelu_tangent", no_third_order, lib=LIBRARY)
