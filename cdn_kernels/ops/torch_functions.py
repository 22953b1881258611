"""Run torch's own convolutions through their first derivatives, wherever a network calls them.

A convolution is linear in each of its arguments, so its tangent needs no second forward: six units of convolution a
step, as in :mod:`cdn_kernels.ops.conv`, for any number of dimensions, groups, dilations and transposed ones. Those of
two dimensions for which the library has faster kernels run in these, their bias is added afterwards.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from cdn_kernels import reference
from cdn_kernels.backends.interface import TYPES
from cdn_kernels.ops import convolve
from cdn_kernels.ops.common import resolve_untransformed
from cdn_kernels.ops.conv import as_autocast
from cdn_kernels.ops.foreign import by_first_derivatives
from cdn_kernels.transforms import transformed

CONVOLUTIONS = {getattr(torch, f"conv{transposed}{n}d") for transposed in ("", "_transpose") for n in (1, 2, 3)}
# The second is seen instead of the first that it calls.
ATTENTION = {F.scaled_dot_product_attention, F.multi_head_attention_forward}
# The layers of torch.nn that call any of these themselves. Containers may hold anything, which modules() then finds.
_CALLERS = (nn.modules.conv._ConvNd, nn.MultiheadAttention)


class FirstOrderFunctions(TorchFunctionMode):
    """Within a ``with`` block, run torch's convolutions through their own vjp and jvp.

    Nothing is patched: calls are intercepted in this thread, as long as the block lasts. Calls of the reference stay
    what they are, and so does what runs under torch.func transforms. Attention runs by torch's plain implementation,
    for the backward pass of the fused ones cannot be differentiated.

    Args:
        convolutions: whether they are seen; if not, attention alone is.

    Attributes:
        filters: of the convolutions that ran through vjp and jvp of torch's, though the library has an operation for
            their kind, in order, as they were given.
    """

    def __init__(self, convolutions: bool = True) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.filters: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.convolutions and func in CONVOLUTIONS and not _is_own(sys._getframe(1).f_globals):
            return self._convolution(func, *args, **kwargs)
        if func in ATTENTION:
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _convolution(
        self,
        func: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *options: Any,
        **named: Any,
    ) -> Tensor:
        tensors = [input, weight] if bias is None else [input, weight, bias]
        if transformed() or not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
            return func(input, weight, bias, *options, **named)
        stride = _own_stride(input, weight, *options, **named) if func is torch.conv2d else None
        if stride is not None:
            own = _of_our_own(input, weight, bias, stride)
            if own is not None:
                return own
            self.filters.append(weight)
        device = input.device.type
        if torch.is_autocast_enabled(device):
            tensors = [t.to(torch.get_autocast_dtype(device)) for t in tensors]
        return by_first_derivatives(_Convolution(func, options, named), tensors)


def may_call_them(network: nn.Module) -> bool:
    """Tell whether a network may call a convolution or attention: all but those made of other layers of torch.nn."""
    return any(
        isinstance(module, _CALLERS) or type(module).__module__.split(".")[:2] != ["torch", "nn"]
        for module in network.modules()
    )


def _is_own(names: dict[str, Any]) -> bool:
    """Tell whether a call comes from the reference, or from here."""
    return names is vars(reference) or names is globals()


def _own_stride(
    x: Tensor,
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> int | None:
    """Return the stride of a conv2d of the kind that the library's operation is, None for others."""
    size, steps = weight.shape[-1], _same(stride)
    if x.dim() != 4 or groups != 1 or _same(dilation) != 1 or steps is None:
        return None
    if size % 2 == 0 or weight.shape[-2] != size or x.dtype not in TYPES:
        return None
    if x.device != weight.device or x.shape[1] != weight.shape[1]:  # for torch to explain
        return None
    return steps if _same(padding) == size // 2 or (padding == "same" and steps == 1) else None


def _of_our_own(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor | None:
    """Run conv2d by the library's operation where all its maps have kernels that are faster, else return None."""
    backend = resolve_untransformed("conv2d", "auto", x)
    if backend == "reference":
        return None
    x, weight = as_autocast(x, weight=weight)
    if not convolve.all_run_here(x, weight, stride, backend):
        return None
    if convolve.asks_for_channels_last(x):  # gradients and tangents come in any layout, and filters decide for them
        weight = weight.contiguous(memory_format=torch.channels_last)
    u = torch.ops.cdn_kernels.conv2d(x, weight, stride, backend)
    return u if bias is None else u.add_(bias.to(u.dtype).view(1, -1, 1, 1))


def _same(numbers: object) -> int | None:
    """Return the number that holds for both dimensions, None where there is no such."""
    if isinstance(numbers, int):
        return numbers
    if isinstance(numbers, (tuple, list)) and len(numbers) in (1, 2) and numbers[0] == numbers[-1]:
        return numbers[0]
    return None


class _Convolution:
    """A convolution, with the options that follow its bias."""

    def __init__(self, func: Callable[..., Tensor], options: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.func, self.options, self.named = func, options, named

    def graph(self, leaves: Sequence[Tensor]) -> Tensor:
        x, weight, *bias = leaves
        return self._run(x, weight, *bias)

    def second_derivatives(
        self, leaves: Sequence[Tensor], tangents: Sequence[Tensor | None], g: Tensor
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        x, weight, *_ = leaves
        by_x, by_weight, *by_bias = tangents
        # Who runs the backward pass under autocast does not mean these, which have been rounded already if at all.
        with torch.autocast(x.device.type, enabled=False):
            terms = [] if by_x is None else [self._run(by_x, weight)]
            if any(v is not None for v in (by_weight, *by_bias)):
                terms.append(self._run(x, torch.zeros_like(weight) if by_weight is None else by_weight, *by_bias))
        tangent = sum(terms[1:], terms[0])
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if not tangent.requires_grad:
            return tangent, [None] * len(wanted)
        return tangent, torch.autograd.grad(tangent, wanted, g, allow_unused=True)

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.func(x, weight, bias, *self.options, **self.named)
