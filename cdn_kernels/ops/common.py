"""What the registered operations share: layouts, dtypes, and what a backward pass is asked for."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from cdn_kernels import reference
from cdn_kernels.backends import measured
from cdn_kernels.backends.dispatch import check_impl, resolve
from cdn_kernels.backends.interface import TYPES
from cdn_kernels.torch_private import will_run
from cdn_kernels.transforms import transformed

LIBRARY = torch.library.Library("cdn_kernels", "FRAGMENT")

# What every operation of the library does, by its name in torch.
FUNCTIONS: dict[str, Callable[..., Any]] = {}

Context = Any  # what autograd keeps for the backward pass of an operation, with whatever attributes it was given
Gradients = tuple[Tensor | None, ...]  # by each input of an operation


def register(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register what an operation does on every device, and how its results look.

    The argument ``backend`` of an operation says whose kernels it runs, and goes with it into its derivatives.
    """
    FUNCTIONS[f"cdn_kernels::{name}"] = function
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cdn_kernels::{name}", fake, lib=LIBRARY)


def is_channels_last(x: Tensor) -> bool:
    """Tell whether x [B, C, H, W] is stored as [B, H, W, C] and not as contiguous at the same time."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def empty_result(x: Tensor) -> Tensor:
    """Return an empty tensor like x, contiguous unless x is channels last."""
    if x.is_contiguous() or is_channels_last(x):
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    """Return x contiguous or channels last, as it is if it is that already."""
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def as_kernels_take_it(x: Tensor) -> tuple[Tensor, int]:
    """Return (x in one of the layouts the kernels know, its number of channels if that is channels last or 0)."""
    return (x, x.shape[1]) if is_channels_last(x) else (x.contiguous(), 0)


def resolve_untransformed(operation: str, impl: str, x: Tensor, fastest: str | None = None) -> str:
    """Return the backend for x [...], the reference under torch.func transforms and forward-mode differentiation.

    Args:
        fastest: the backend that was measured to be the fastest; what is known of the operation if None.

    Raises:
        RuntimeError: a transform is active and impl names a backend that cannot be transformed, or cannot run.
    """
    if not transformed():
        # Images were measured channels last.
        if fastest is None and (x.dim() != 4 or is_channels_last(x)):
            fastest = measured.fastest(operation, x.device, x.dtype)
        return resolve(operation, impl, x.device, x.dtype, fastest)
    if impl in ("auto", "reference"):
        return "reference"
    check_impl(impl)
    raise RuntimeError(
        f"{operation}: impl={impl!r} cannot run under torch.func transforms or forward-mode "
        "differentiation; use impl='reference'"
    )


def of_one_tensor(operation: str, impl: str, x: Tensor) -> Tensor:
    """Run an operation whose only tensor is x by the chosen backend; errors as of :func:`resolve_untransformed`."""
    backend = resolve_untransformed(operation, impl, x)
    if backend == "reference":
        return getattr(reference, operation)(x)
    return getattr(torch.ops.cdn_kernels, operation)(x, backend)


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Raise TypeError unless the kernels have code for a dtype."""
    if dtype not in TYPES:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {dtype}")


def check_tensor(name: str, x: object, dims: int | None = None) -> None:
    """Raise TypeError or ValueError unless x is a tensor of a dtype of the kernels, and of dims dimensions if given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    check_dtype(name, x.dtype)
    if dims is not None and x.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions, got shape {list(x.shape)}")


def asked_for(ctx: Context, index: int, missing: int = 0) -> bool:
    """Tell whether the running backward pass will use the gradient of an input of an operation.

    ``ctx.needs_input_grad`` is true for every parameter, also while only the score is computed, which would pay for
    weight gradients that no one reads. The engine knows better, but cannot be asked about leaves, which count as asked
    for; so operations are given views of their parameters (:func:`as_input`).

    Args:
        index: of the input, a tensor.
        missing: how many inputs before it are None.
    """
    if not ctx.needs_input_grad[index]:
        return False
    return will_run(ctx.next_functions[index - missing][0])


def same_view(x: Tensor) -> Tensor:
    """Return a view of x of the same shape and strides.

    ``x.view_as(x)`` has other strides where a size is 1, as of images of one channel, or of 1x1 filters: those of
    contiguous ones. Convolutions and norms then leave channels last.
    """
    return x[...]


def as_input(parameter: Tensor) -> Tensor:
    """Return a parameter in a form that :func:`asked_for` can ask about."""
    return same_view(parameter) if parameter.is_leaf and parameter.requires_grad else parameter


def no_third_order(ctx: Context, *grads: Tensor | None) -> NoReturn:
    """Refuse to differentiate a second derivative."""
    raise RuntimeError("cdn_kernels: third derivatives have no kernel; use impl='reference' for them")


def without_third_order(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return second derivatives in a form that refuses to be differentiated, where gradients are recorded."""
    return _Refused.apply(*tensors) if torch.is_grad_enabled() else tensors


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(same_view, tensors))

    backward = staticmethod(no_third_order)
