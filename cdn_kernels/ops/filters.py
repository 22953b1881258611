"""Filters as convolutions take them, and their gradients, of which autograd adds up those of all sweeps of a step.

A step convolves with the same filters in its forward, in the sweep of the score, and with other images of the batch.
Each of these has a gradient by the filters, and of few images it takes as long to round, write and add it as to
multiply. Where filters are larger than the images, these gradients are computed when their sum is read, as one
gradient of all the images together, which is rounded once.
"""

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdn_kernels.backends.shared_library import observers
from cdn_kernels.ops.common import Context, as_input, in_layout, same_view
from cdn_kernels.ops.leading import without_zeros
from cdn_kernels.torch_private import WrapperTensor, modes_are_active, run_on_values
from cdn_kernels.transforms import transformed

# Smaller filters cost less to add up than it takes in Python to wait.
FEWEST_FILTERS = 1 << 16
# Numbers of images and gradients for one of filters up to which they are kept and copied side by side.
MOST_IMAGES = 1


class _Shared(threading.local):
    """Filters that this thread has asked for, by what makes them."""

    found: dict[tuple[Any, ...], tuple[Tensor, Tensor]] | None = None


_shared = _Shared()


class SharedFilters:
    """Let all convolutions within a ``with`` block that take the same filters take the same tensor of them.

    Under autocast they are rounded once then, and gradients of several calls of a network are computed together.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before, _shared.found = _shared.found, {}

    def __exit__(self, *error: object) -> None:
        _shared.found = self._before


def as_filters(weight: Tensor, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """Return filters in a dtype, in a form that :func:`cdn_kernels.ops.common.asked_for` can ask about.

    Args:
        weight: [O, I, k, k].
        channels_last: whether they have to be that.
    """
    if not (weight.requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        return as_input(_converted(weight, dtype, channels_last))
    found = _shared.found
    key = id(weight), weight._version, dtype, channels_last
    if found is not None and key in found:
        return found[key][1]
    if weight.numel() >= FEWEST_FILTERS and weight.device.type == "cpu":  # where gradients can wait
        filters = _Filters.apply(weight, dtype, channels_last)
    else:
        filters = as_input(_converted(weight, dtype, channels_last))
    if found is not None:
        found[key] = weight, filters  # the key is that of the weight as long as it lives
    return filters


def _converted(weight: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    return in_layout(weight.to(dtype), True) if channels_last else weight.to(dtype)


class _Filters(torch.autograd.Function):
    """Where all gradients by filters meet."""

    @staticmethod
    def forward(ctx: Context, weight: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
        ctx.dtype = weight.dtype
        ctx.set_materialize_grads(False)
        filters = _converted(weight, dtype, channels_last)
        return same_view(filters) if filters is weight else filters

    @staticmethod
    def backward(ctx: Context, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        if isinstance(grad, FilterGradient):
            grad = grad.value()
        return None if grad is None else grad.to(ctx.dtype), None, None


class Convolved(NamedTuple):
    """What a gradient by filters is of, besides images.

    Attributes:
        size: of the filters.
        stride, backend: of the convolution.
    """

    size: int
    stride: int
    backend: str


def by_filters(ctx: Context, index: int, x: Tensor, grad: Tensor, size: int, stride: int, backend: str) -> Tensor:
    """Return the gradient by the filters of a convolution of x from that by its result, at once or when it is read.

    Args:
        ctx, index: of the operation that is differentiated, and of its argument that are the filters.
        x: [B, I, H, W]; grad: that by the result of the convolution.
    """
    of = Convolved(size, stride, backend)
    if not torch.is_grad_enabled():
        x, grad = without_zeros(x, grad)
    if _can_wait(x, grad, of) and ctx.next_functions[index][0].name() == _NODE:
        return FilterGradient([(x, grad)], of)
    return torch.ops.cdn_kernels.conv2d_weight(x, grad, *of)


_NODE = f"{_Filters.__name__}Backward"  # as autograd calls it


def _can_wait(x: Tensor, grad: Tensor, of: Convolved) -> bool:
    if of.backend != "cpu" or torch.is_grad_enabled() or not WrapperTensor.exists:
        return False
    if x.numel() + grad.numel() > MOST_IMAGES * x.shape[1] * grad.shape[1] * of.size**2:
        return False
    watched = modes_are_active() and not observers.calls  # a recorder of ours knows such tensors
    return type(x) is Tensor and type(grad) is Tensor and not watched and not transformed()


class FilterGradient(WrapperTensor):
    """A gradient by filters that is computed when it is read; two of the same filters add up to one.

    Args:
        pairs: images, and gradients by the results of their convolutions with the filters.
        of: what else it is of.
    """

    pairs: list[tuple[Tensor, Tensor]]
    of: Convolved

    @staticmethod
    def __new__(cls, pairs: list[tuple[Tensor, Tensor]], of: Convolved) -> "FilterGradient":
        """Make a tensor without memory."""
        x, grad = pairs[0]
        self = cls.without_memory((grad.shape[1], x.shape[1], of.size, of.size), x)
        self.pairs, self.of = pairs, of
        return self

    def value(self) -> Tensor:
        """Return the gradient itself [O, I, k, k]."""
        x, grad = (t[0] if len(t) == 1 else torch.cat(t) for t in zip(*self.pairs))
        return torch.ops.cdn_kernels.conv2d_weight(x, grad, *self.of)

    def plus(self, other: object) -> "FilterGradient | None":
        """Return the sum with another, None if that is of another kind."""
        if not isinstance(other, FilterGradient) or self.of != other.of:
            return None
        shapes = ([(t.shape[1:], t.dtype) for t in gradient.pairs[0]] for gradient in (self, other))
        return FilterGradient(self.pairs + other.pairs, self.of) if next(shapes) == next(shapes) else None

    @classmethod
    def run(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add two, or run any operation on the values."""
        if func is torch.ops.aten.add.Tensor and not kwargs and isinstance(args[0], FilterGradient):
            total = args[0].plus(args[1])
            if total is not None:
                return total
        return run_on_values(func, args, kwargs)
