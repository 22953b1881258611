"""One training step of any network whose input gradient is part of the loss."""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cdn_kernels import reference
from cdn_kernels.backends.dispatch import check_impl, using
from cdn_kernels.ops.foreign import graph_leaves
from cdn_kernels.ops.torch_functions import FirstOrderFunctions
from cdn_kernels.phases import phase
from cdn_kernels.torch_private import detached
from cdn_kernels.transforms import transformed


class Step(NamedTuple):
    """What :func:`score_matching_step` computed on its way, detached."""

    loss: Tensor
    outputs: Any
    score: Tensor


def score_matching_step(
    network: Callable[[Tensor], Any],
    y: Tensor,
    loss: Callable[[Any, Tensor], Tensor],
    *,
    log_density: Callable[[Any], Tensor] | None = None,
    scaled: bool = False,
    impl: str = "auto",
) -> Step:
    """Add the parameter gradient of a loss of a network's outputs and of its score to ``.grad``.

    The step consists of four sweeps: forward; score, backward to the input; tangent, forward along the gradient of the
    loss by the score; and adjoint, backward through both. It accumulates as ``loss.backward()`` does, so optimizers,
    frozen parameters, clipping, hooks and gradient accumulation work as ever. In its score sweep the library's
    operations compute no weight gradients, and no sweep uses convolutions of higher order.

    Convolutions of torch inside the network run in the library's kernels where these are faster, and else through their
    own vjp and jvp (as any block can be made to with :func:`cdn_kernels.foreign`), which a warning says once; the
    network is not touched for that. Linear layers,
    pointwise functions, norms and attention are left to torch's double backward. Limitation: torch.utils.checkpoint
    around torch's convolutions needs impl="reference", since it runs them again after the forward.

    Args:
        network: a module or function from samples y to outputs; conditioned ones as ``lambda y: model(y, t)``.
        y: samples [B, ...], floating point. One that requires grad is part of the graph and gets its gradient;
            any other stays a constant.
        loss: a function of (outputs, score) that returns the scalar to differentiate; the score has the shape of y.
        log_density: a function from the outputs to one log-density per sample, [B], whose gradient is the score.
            By default outputs [B] themselves, or :func:`cdn_kernels.logsumexp` of outputs [B, C].
        scaled: that the loss carries a factor, which the caller takes out of ``.grad``. float16 is refused without:
            gradients of log-densities go beyond its range, which ends at 65504, or vanish below 6e-8.
        impl: what runs the library's operations inside the network, where these leave it open: "auto", "reference"
            (then torch's convolutions, too, are left to its double backward) or "cpu".

    Returns:
        (loss, outputs, score), detached; the graph is gone. Grad mode is left as found, and may be off.

    Raises:
        TypeError: network, loss or log_density cannot be called, or y or the loss is no tensor of floats.
        ValueError: outputs or log-densities of another shape, a loss that is no scalar, or one of them does not depend
            on its input through differentiable operations; float16 without scaling.
        RuntimeError: the chosen impl cannot run here, or a torch.func transform is active.

    Source: Vincent, "A connection between score matching and denoising autoencoders", 2011; docs/derivations.md.
    """
    _check(network, y, loss, log_density, impl)
    if not scaled:
        _check_range(network, y)
    density = log_density or _default_density
    functions = FirstOrderFunctions()
    # For the backward passes every tensor is in its dtype: autocast could only round what was kept in full precision.
    as_stored = torch.autocast(y.device.type, enabled=False)
    with using(impl), torch.inference_mode(False), torch.enable_grad():
        given, y = y, reference.differentiable(y, keep=True)
        with phase("forward"), nullcontext() if impl == "reference" else functions:
            outputs = network(y)
            value = density(outputs)
        if functions.filters:
            _warn_foreign(_names(network, functions.filters))
        with phase("score"), as_stored:
            score = reference.input_gradient("score_matching_step", value, y, create_graph=True)
        total = loss(outputs, score)
        _check_loss(total)
        with phase("backward"), as_stored:
            _accumulate(total, None if y is given else y)
    return Step(total.detach(), detached(outputs), score.detach())


def _accumulate(total: Tensor, hidden: Tensor | None) -> None:
    """Run the backward pass to all leaves but a hidden one, which nobody else has seen."""
    if hidden is None:
        total.backward()
        return
    leaves = [leaf for leaf in graph_leaves(total) if leaf is not hidden]
    if leaves:
        total.backward(inputs=leaves)


def _default_density(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor) and outputs.dim() in (1, 2):
        return outputs if outputs.dim() == 1 else reference.logsumexp(outputs)
    got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ValueError(
        f"score_matching_step: without log_density, network must return log-densities [B] or logits [B, C], got {got}"
    )


def _check(network: object, y: object, loss: object, log_density: object, impl: str) -> None:
    check_impl(impl)
    for name, function in (("network", network), ("loss", loss), ("log_density", log_density)):
        if not callable(function) and not (name == "log_density" and function is None):
            raise TypeError(
                f"score_matching_step: {name} must be a function or a module, got {type(function).__name__}"
            )
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise TypeError(
            "score_matching_step: y must be a tensor of floats, got "
            f"{y.dtype if isinstance(y, Tensor) else type(y).__name__}"
        )
    if y.dim() == 0:
        raise ValueError("score_matching_step: y must be samples [B, ...], got a 0-d tensor")
    if transformed():
        raise RuntimeError(
            "score_matching_step: gradients cannot be accumulated under torch.func transforms or "
            "forward-mode differentiation; use cdn_kernels.score"
        )


def _check_range(network: object, y: Tensor) -> None:
    device = y.device.type
    rounded = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    if rounded or y.dtype == torch.float16 or any(p.dtype == torch.float16 for p in parameters):
        raise ValueError(
            "score_matching_step: in float16, whose range ends at 65504, gradients of log-densities "
            "overflow or vanish; use bfloat16, or scale the loss, take the factor out of .grad and pass "
            "scaled=True"
        )


def _check_loss(total: object) -> None:
    if not isinstance(total, Tensor) or not total.is_floating_point():
        got = total.dtype if isinstance(total, Tensor) else type(total).__name__
        raise TypeError(f"score_matching_step: loss must return a tensor of floats, got {got}")
    if total.numel() != 1:
        raise ValueError(f"score_matching_step: loss must return a scalar, got {list(total.shape)}")
    if not total.requires_grad:
        raise ValueError("score_matching_step: loss must depend on outputs or score through differentiable operations")


def _names(network: object, filters: Iterable[Tensor]) -> list[str]:
    """Describe convolutions by the modules that own their filters, or by the shapes of the filters."""
    modules = network.named_modules() if isinstance(network, nn.Module) else ()
    owners = {id(p): f"{type(m).__name__} {name!r}" for name, m in modules for p in m.parameters(recurse=False)}
    return list(dict.fromkeys(owners.get(id(f), f"a convolution with filters {list(f.shape)}") for f in filters))


def _warn_foreign(names: Sequence[str]) -> None:
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    _warn_once(
        f"score_matching_step runs {listed} through their own vjp and jvp; cdn_kernels.ConvGELU or conv2d would "
        'be faster in place of those without bias and with "same" padding'
    )


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
