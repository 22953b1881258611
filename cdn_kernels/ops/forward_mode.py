"""Functions of torch whose backward pass has no forward mode, composed of others that have one."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cdn_kernels.ops.substitution import Substitution
from cdn_kernels.torch_private import weight_norm


class Composed(Substitution):
    """Within a ``with`` block, run such functions as compositions, whose values differ from theirs by rounding."""

    def __init__(self) -> None:
        super().__init__({**_COMPOSITIONS, weight_norm(): _weight_norm})


def _pointwise(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(input: Tensor, inplace: bool = False) -> Tensor:
        return input.copy_(function(input.clone())) if inplace else function(input)

    return run


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    groups = input.reshape(len(input), num_groups, -1)
    normed = F.layer_norm(groups, groups.shape[2:], eps=eps).view(input.shape)
    channels = (1, -1) + (1,) * (input.dim() - 2)
    out = normed if weight is None else normed * weight.view(channels)
    return (out if bias is None else out + bias.view(channels)).to(normed.dtype)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


# Those of nn.functional stand for those that they call, too.
_COMPOSITIONS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.silu: _pointwise(lambda x: x * x.sigmoid()),
    F.mish: _pointwise(lambda x: x * F.softplus(x).tanh()),
    F.group_norm: _group_norm,
    torch.group_norm: lambda input, groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True: _group_norm(
        input, groups, weight, bias, eps
    ),
}
