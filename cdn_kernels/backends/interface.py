"""Numbers of csrc/api.h by which every backend names passes, poolings, maps of convolutions and types."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

FORWARD, BACKWARD, TANGENT = range(3)  # the sweeps of a pass
DOT, SCALE, MEAN, SPREAD = range(4)  # the kinds of pooling
CONV_FORWARD, CONV_INPUT, CONV_WEIGHT = range(3)  # the three maps of a convolution
MAPS = ("forward", "input", "weight")  # their names
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

ConvolutionShape = tuple[Sequence[int], Sequence[int]]  # [B, I, H, W] of the images and [O, I, k, k] of the filters


# In place of a number of groups: every channel of all images is one, which is batch normalization.
NO_GROUPS = 0


def shares_of(batch: int, groups: int) -> int:
    """Return in how many runs of samples gradients of gain and bias are summed, for any number of threads."""
    return 1 if groups == NO_GROUPS else min(batch, 64)


class Kernels(Protocol):
    """The module of a backend's kernels, as the operations call it; cpu.py describes the functions.

    Results are written into arguments. The offset of a key is a tensor int64 [] on the device of the others, and so are
    the places of its images, int64 [B]; None for consecutive ones from the first.
    """

    def add_noise(
        self,
        x: Tensor | None,
        sigma: Tensor | None,
        y: Tensor,
        seed: int,
        offset: Tensor,
        channels: int = 0,
        first: int = 0,
        places: Tensor | None = None,
    ) -> None:
        """Write ``x + sigma eps`` into y."""

    def sample_noise(
        self,
        x: Tensor,
        sigma: Tensor,
        y: Tensor,
        law: str,
        low: float,
        high: float,
        clean_share: float,
        clean: str,
        seed: int,
        offset: Tensor,
        channels: int = 0,
        first: int = 0,
        places: Tensor | None = None,
    ) -> None:
        """Draw noise levels into sigma and write ``x + sigma eps`` into y."""

    def sample_sigma(
        self,
        sigma: Tensor,
        law: str,
        low: float,
        high: float,
        clean_share: float,
        clean: str,
        seed: int,
        offset: Tensor,
        first: int = 0,
        places: Tensor | None = None,
    ) -> None:
        """Write noise levels drawn from a law into sigma."""

    def denoising(
        self,
        score: Tensor,
        sigma: Tensor,
        seed: int,
        offset: Tensor,
        channels: int = 0,
        first: int = 0,
        places: Tensor | None = None,
        *,
        errors: Tensor | None = None,
        factors: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> None:
        """Write the mean squares of the denoising residual, or factors times their gradients."""

    def gelu(
        self, sweep: int, u: Tensor, grad: Tensor | None, other: Tensor | None, out: Tensor, tangent_out: Tensor | None
    ) -> None:
        """Run a pass of GELU."""

    def gelu_norm(
        self,
        sweep: int,
        x: Tensor,
        gain: Tensor,
        groups: int,
        eps: float,
        scale_preserving: bool,
        channels_last: bool,
        *,
        statistics: Tensor,
        out: Tensor,
        residual: Tensor | None = None,
        grad: Tensor | None = None,
        source: Tensor | None = None,
        tangent: Tensor | None = None,
        sum: Tensor | None = None,
        tangent_out: Tensor | None = None,
        gain_grad: Tensor | None = None,
    ) -> None:
        """Run a pass of residual + GELU + group normalization."""

    def pool(
        self,
        kind: int,
        shape: Sequence[int],
        channels_last: bool,
        values: Tensor,
        *,
        a: Tensor | None = None,
        b: Tensor | None = None,
        out: Tensor | None = None,
    ) -> None:
        """Reduce images over pixels or whole samples, or undo it."""

    def conv2d_is_faster(self, kind: int, x: Tensor, shape: ConvolutionShape, stride: int, activation: bool) -> bool:
        """Tell whether conv2d takes a map of a convolution and is faster than torch's."""

    @property
    def conv2d(self) -> Callable[..., None]:
        """Run a map of a convolution: (kind, first, second, out, shape, stride), and what follows it, by keywords.

        Backends differ in what can follow: activation, and on GPUs u, added and product.
        """
