"""The operations as modules, for networks written elsewhere.

Their parameters are named and shaped like those of torch's modules: a ``ConvGELU`` loads the state of a bias-free
``torch.nn.Conv2d``, a ``GELUGroupNorm`` the weight of a ``torch.nn.GroupNorm``.
"""

import torch
from torch import Tensor, nn

from cdn_kernels.ops.conv import conv2d_gelu
from cdn_kernels.ops.norm import gelu_group_norm


class ConvGELU(nn.Module):
    """Convolve without bias, "same" padding, and apply the exact GELU (:func:`cdn_kernels.conv2d_gelu`).

    Args:
        in_channels, out_channels: of images [B, in_channels, H, W].
        kernel_size: odd.
        stride: 1 or more.
        impl: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        ValueError: an even kernel_size.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, *, impl: str = "auto"
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"ConvGELU: kernel_size must be odd, got {kernel_size}")
        self.stride, self.impl = stride, impl
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out_channels, ceil(H / stride), ceil(W / stride)] for x [B, in_channels, H, W]."""
        return conv2d_gelu(x, self.weight, self.stride, impl=self.impl)

    def extra_repr(self) -> str:
        """Say what the module was made with, for its repr."""
        outputs, inputs, size, _ = self.weight.shape
        return f"{inputs}, {outputs}, kernel_size={size}, stride={self.stride}, impl={self.impl!r}"


class GELUGroupNorm(nn.Module):
    """Add a residual, apply GELU and normalize groups of channels (:func:`cdn_kernels.gelu_group_norm`).

    Args:
        num_groups: number of groups.
        num_channels: of images [B, num_channels, H, W], divisible by num_groups.
        eps: regularization of the variance, > 0; relative to its mean over groups if scale_preserving.
        scale_preserving: keep the deviation that the groups of a sample have in common.
        impl: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        ValueError: num_groups does not divide num_channels.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        *,
        eps: float = 1e-3,
        scale_preserving: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"GELUGroupNorm: num_groups must divide the {num_channels} channels, got {num_groups}")
        self.num_groups, self.eps, self.scale_preserving, self.impl = num_groups, eps, scale_preserving, impl
        self.weight = nn.Parameter(torch.ones(num_channels))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the norm of GELU of x + residual, both [B, num_channels, H, W]."""
        return gelu_group_norm(
            x,
            self.weight,
            self.num_groups,
            residual=residual,
            eps=self.eps,
            scale_preserving=self.scale_preserving,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """Say what the module was made with, for its repr."""
        return (
            f"{self.num_groups}, {len(self.weight)}, eps={self.eps}, scale_preserving={self.scale_preserving}, "
            f"impl={self.impl!r}"
        )
