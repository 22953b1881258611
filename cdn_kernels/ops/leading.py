"""Gradients of batches of which only the first samples count, computed for these alone.

Where a batch goes through a network at once, but the score of its first samples only is wanted, the gradients of the
score's sweep are zero beyond these, and so are the tangents of the step. :class:`LeadingGradient` is such a gradient
without its zeros. Operations that give zeros for zeros, sample by sample, run on the first samples; all others get the
gradient with its zeros, so that a rule that is missing costs time and no term.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdn_kernels.ops.common import Context, is_channels_last, same_view
from cdn_kernels.torch_private import WrapperTensor, run_on_values

Arguments = list[Any]


class LeadingGradient(WrapperTensor):
    """A gradient [B, ...] that is zero beyond its first samples.

    Args:
        part: what it is of these, [N, ...], without a graph; of all of them, once an operation has changed it in place.
        batch: B.
    """

    part: Tensor

    @staticmethod
    def __new__(cls, part: Tensor, batch: int) -> "LeadingGradient":
        """Make a tensor without memory."""
        self = cls.without_memory((batch, *part.shape[1:]), part, channels_last=is_channels_last(part))
        self.part = part
        return self

    def value(self) -> Tensor:
        """Return the gradient with its zeros."""
        whole = torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device=self.device)
        count = len(self.part)
        whole[:count].copy_(self.part)
        whole[count:].zero_()
        return whole

    @classmethod
    def run(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation on the first samples where it gives zeros for the others, else on the values."""
        rule = RULES.get(func.name())
        found = None if rule is None else rule(func, list(args), kwargs)
        if found is not None:
            return found
        if func._schema.is_mutable and isinstance(args[0], LeadingGradient) and torch.Tag.inplace_view not in func.tags:
            # Formulas of torch change in place what they have computed themselves.
            value = args[0].value()
            run_on_values(func, (value, *args[1:]), kwargs)
            args[0].part = value
            return args[0]
        return run_on_values(func, args, kwargs)


def leading(x: Tensor, count: int) -> Tensor:
    """Return the first samples of x [B, ...]; gradients by x, of any order, are :class:`LeadingGradient`."""
    return _Leading.apply(x, count) if WrapperTensor.exists else x[:count]


def filled(y: Tensor) -> Tensor:
    """Return y, so that its own gradient is an ordinary tensor."""
    return _Filled.apply(y)


def without_zeros(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return both of two tensors [B, ...] of as many samples as have one that is not zero."""
    for t in (x, grad):
        if isinstance(t, LeadingGradient):
            return _first(x, len(t.part)), _first(grad, len(t.part))
    return x, grad


class _Leading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, count: int) -> Tensor:
        ctx.batch = len(x)
        if isinstance(x, LeadingGradient) and len(x.part) == count:
            return same_view(x.part)
        return x[:count]

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None]:
        return _Extended.apply(grad, ctx.batch), None


class _Extended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, part: Tensor, batch: int) -> Tensor:
        ctx.count = len(part)
        return LeadingGradient(part.detach(), batch)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None]:
        return _Leading.apply(grad, ctx.count), None


class _Filled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, y: Tensor) -> Tensor:
        return same_view(y)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:
        return grad if torch.is_grad_enabled() or not isinstance(grad, LeadingGradient) else grad.value()


# ----------------------------------------------------------------------------------------------------------------
# Rules: functions of an operation and its arguments, which return its result, or None where they do not apply.
# ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EachSample:
    """An operation that computes every sample for itself, or sums what it computes of each.

    Attributes:
        samples: the places of arguments [B, ...], which may be None.
        zero: alternatives, each a set of places: where all of one are zero, so is what is computed of a sample.
        sums: the places of results that are sums over samples.
        source: the place of an argument that is added to what is computed, and may be that of the first samples only.
        shape: the place of an argument that is the shape of samples.
    """

    samples: tuple[int, ...]
    zero: tuple[tuple[int, ...], ...]
    sums: tuple[int, ...] = ()
    source: int | None = None
    shape: int | None = None

    def __call__(self, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
        """Run it on the first samples."""
        size = next((size for size in (_size_of(args, places) for places in self.zero) if size is not None), None)
        if size is None:
            return self._with_source(func, args, kwargs)
        count, batch = size
        for place in self.samples:
            args[place] = _first(args[place], count)
        if self.shape is not None:
            args[self.shape] = [count, *args[self.shape][1:]]
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            return result if self.sums else LeadingGradient(result, batch)
        # What was not asked for is empty.
        return tuple(
            t if place in self.sums or not t.numel() else LeadingGradient(t, batch) for place, t in enumerate(result)
        )

    def _with_source(self, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
        """Run it on all samples, of which the first ones have a source, if kernels take it so."""
        if self.source is None or not isinstance(args[self.source], LeadingGradient) or args[-1] != "cpu":
            return None
        args[self.source] = args[self.source].part
        return None if _sizes(args) else func(*args, **kwargs)


def _size_of(args: Arguments, places: Sequence[int]) -> tuple[int, int] | None:
    """Return (N, B) of arguments that are all without their zeros, and alike; None if they are not."""
    given = [args[place] for place in places if args[place] is not None]
    sizes = _sizes(given)
    return sizes.pop() if len(sizes) == 1 and all(isinstance(t, LeadingGradient) for t in given) else None


def _first(x: Any, count: int) -> Any:
    """Return the first samples of a tensor, or None of None."""
    if isinstance(x, LeadingGradient):
        return x.part if len(x.part) == count else x.value()[:count]
    return None if x is None else x[:count]


def _sizes(args: Arguments) -> set[tuple[int, int]]:
    """Return (N, B) of all that are without their zeros."""
    return {(len(t.part), len(t)) for t in args if isinstance(t, LeadingGradient)}


def _pointwise(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
    """Multiply by, or divide by, numbers, values that all samples share, or values of each."""
    first = next(t for t in args if isinstance(t, LeadingGradient))
    sizes = _sizes(args)
    if len(sizes) > 1 or any(isinstance(t, Tensor) and t.dim() > first.dim() for t in args):
        return None
    ((count, batch),) = sizes
    of_samples = lambda t: isinstance(t, Tensor) and t.dim() == first.dim() and len(t) == batch
    return LeadingGradient(func(*(_first(t, count) if of_samples(t) else t for t in args), **kwargs), batch)


def _quotient(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
    return _pointwise(func, args, kwargs) if isinstance(args[0], LeadingGradient) else None


def _sum(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
    """Add or subtract two; where one has values of all samples, the others' stay what they are, up to the sign."""
    a, b = args
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape or len(_sizes(args)) > 1:
        return None
    both = isinstance(a, LeadingGradient) and isinstance(b, LeadingGradient)
    if isinstance(a, LeadingGradient) and not both and (kwargs or func.name() != "aten::add.Tensor"):
        return None  # the others change, too
    ((count, batch),) = _sizes(args)
    found = func(_first(a, count), _first(b, count), **kwargs)
    if both:
        return LeadingGradient(found, batch)
    return torch.cat([found, (b if isinstance(a, LeadingGradient) else a)[count:]])


def _sum_in_place(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
    a, b = args
    if isinstance(a, LeadingGradient) or not isinstance(b, LeadingGradient) or a.shape != b.shape:
        return None
    func(a[: len(b.part)], b.part, **kwargs)
    return a


def _alone(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    """Apply a function of each element that keeps zeros."""
    return LeadingGradient(func(args[0].part, *args[1:], **kwargs), len(args[0]))


def _reshaped(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
    """Give another shape to each sample."""
    x, shape = args
    if not shape or shape[0] != len(x) or (func.name() == "aten::expand" and len(shape) != x.dim()):
        return None
    part = x.part.contiguous() if func.name() == "aten::view" else x.part
    return LeadingGradient(func(part, [len(x.part), *shape[1:]], **kwargs), len(x))


def _along(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
    """Do something along one dimension that is not that of samples."""
    x, dim, *others = args if len(args) > 1 else (*args, 0)
    dim %= x.dim() + (func.name() == "aten::unsqueeze")
    return LeadingGradient(func(x.part, dim, *others, **kwargs), len(x)) if dim > 0 else None


def _into_larger(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
    """Undo a choice along one dimension."""
    x, shape, dim, *others = args
    dim %= len(shape)
    return LeadingGradient(func(x.part, [len(x.part), *shape[1:]], dim, *others), len(x)) if dim > 0 else None


def _reduced(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
    """Sum over samples, or over dimensions that stay: results of others get new dimensions in place in torch."""
    x, dims, *others = args
    over_samples = any(dim % x.dim() == 0 for dim in dims or ())
    if not over_samples and (not dims or others[:1] != [True]):
        return None
    found = func(x.part, dims, *others, **kwargs)
    return found if over_samples else LeadingGradient(found, len(x))


def _product(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
    """Multiply matrices: rows of samples by one, or columns of samples by rows of them."""
    a, b = args
    if not isinstance(b, LeadingGradient):
        return LeadingGradient(func(a.part, b), len(a))
    return None if isinstance(a, LeadingGradient) else func(a[:, : len(b.part)], b.part)


def _chosen(func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
    """Choose between gradients and the number 0."""
    where, a, b = args
    other = b if isinstance(a, LeadingGradient) else a
    if isinstance(other, LeadingGradient) or other.dim() or other.device.type != "cpu" or other.item() != 0:
        return None
    return _pointwise(func, args, kwargs) if not isinstance(where, LeadingGradient) else None


RULES: dict[str, Callable[..., Any]] = {
    "cdn_kernels::conv2d": EachSample(samples=(0,), zero=((0,),)),
    "cdn_kernels::conv2d_input": EachSample(samples=(0,), zero=((0,),), shape=2),
    "cdn_kernels::conv2d_weight": EachSample(samples=(0, 1), zero=((0,), (1,)), sums=(0,)),
    "cdn_kernels::conv2d_of_gelu_input": EachSample(samples=(0, 2, 3), zero=((0, 3),), source=3),
    "cdn_kernels::conv2d_of_gelu_weight": EachSample(samples=(0, 1, 2), zero=((2,),), sums=(0,)),
    "cdn_kernels::gelu_backward": EachSample(samples=(0, 1, 2), zero=((1, 2),), source=2),
    "cdn_kernels::gelu_tangent": EachSample(samples=(0, 1, 2), zero=((2,),)),
    "cdn_kernels::gelu_group_norm_backward": EachSample(samples=(0, 1, 3, 4), zero=((3, 4),), sums=(1,), source=4),
    "cdn_kernels::gelu_group_norm_tangent": EachSample(samples=(0, 1, 3, 4), zero=((4,),), sums=(2,)),
    "cdn_kernels::channel_mean": EachSample(samples=(0,), zero=((0,),)),
    "cdn_kernels::channel_spread": EachSample(samples=(0, 1), zero=((0,),)),
    "cdn_kernels::sample_square": EachSample(samples=(0,), zero=((0,),)),
    "cdn_kernels::sample_dot": EachSample(samples=(0, 1), zero=((0,), (1,))),
    "cdn_kernels::sample_scale": EachSample(samples=(0, 1), zero=((0,), (1,))),
    **dict.fromkeys(("aten::mul.Tensor", "aten::mul.Scalar"), _pointwise),
    **dict.fromkeys(("aten::div.Tensor", "aten::div.Scalar"), _quotient),
    **dict.fromkeys(("aten::add.Tensor", "aten::sub.Tensor"), _sum),
    "aten::add_.Tensor": _sum_in_place,
    **dict.fromkeys(("aten::neg", "aten::detach", "aten::alias", "aten::_to_copy"), _alone),
    **dict.fromkeys(("aten::view", "aten::_unsafe_view", "aten::expand"), _reshaped),
    **dict.fromkeys(("aten::unsqueeze", "aten::squeeze.dim", "aten::select.int", "aten::slice.Tensor"), _along),
    **dict.fromkeys(("aten::select_backward", "aten::slice_backward"), _into_larger),
    "aten::sum.dim_IntList": _reduced,
    "aten::mm": _product,
    "aten::where.self": _chosen,
}
