"""Run torch's layer, batch and instance normalization so that derivatives of any order are right.

The second derivatives of torch's own take the saved statistics for constants, so that third ones are wrong, and nothing
says so (torch 2.13; 2.14 refuses those of batch and instance normalization, and those of layer normalization are wrong
as before). A loss of second derivatives by the samples, such as the Laplacian of a physics-informed network, needs
them. Group normalization, which torch differentiates rightly, takes their place.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdn_kernels import reference
from cdn_kernels.ops.substitution import Substitution


class AnyOrderNorms(Substitution):
    """Within a ``with`` block, run torch's normalizations that keep statistics by group normalization.

    Running statistics change as torch changes them, and what is wrong with arguments is said in torch's words.
    """

    def __init__(self) -> None:
        super().__init__(_NORMS)


_BATCH = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
_MODULES = nn.LayerNorm, *_BATCH, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
_known: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


def has_norms(module: nn.Module) -> bool:
    """Tell whether a network has layers that are normalizations which keep statistics."""
    if module not in _known:
        _known[module] = any(isinstance(m, _MODULES) for m in module.modules())
    return _known[module]


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    shape = torch.Size(normalized_shape)
    _let_torch_check(F.layer_norm, input, shape, weight, bias, eps)
    return _normalized(input.reshape(-1, shape.numel(), 1), 1, weight, bias, eps).view(input.shape)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    _let_torch_check(F.batch_norm, input, running_mean, running_var, weight, bias, True, momentum, eps)
    gain = input.new_ones(input.shape[1]) if weight is None else weight
    return reference.batch_norm(input, gain, bias, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    _let_torch_check(F.instance_norm, input, running_mean, running_var, weight, bias, True, momentum, eps)
    return _normalized(input, input.shape[1], weight, bias, eps)


def _let_torch_check(norm: Callable[..., Tensor], *arguments: Any) -> None:
    """Let torch refuse what does not fit, and change running statistics."""
    with torch.no_grad():
        norm(*arguments)


def _normalized(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    gain = x.new_ones(x.shape[1]) if weight is None else weight.flatten()
    return reference.group_norm(x, groups, gain, None if bias is None else bias.flatten(), eps)


_NORMS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
}
