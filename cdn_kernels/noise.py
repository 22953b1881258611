"""Keys of counter-based noise, and the laws that noise levels are drawn from.

Nothing here draws anything: these are the small values that every backend takes and that a run writes into its
configuration. The drawing is specified in :mod:`cdn_kernels.reference`.
"""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from cdn_kernels.transforms import can_be_read

# The highest noise level that commands take: above it nothing is left of an image in [0, 1].
HIGHEST_LEVEL = 10.0
SEEDS = 1 << 64  # how many seeds there are
LAWS = ("log-uniform", "uniform", "fixed")

Sigma = float | Tensor  # one noise level, or one per image, [B]


def check_level(value: Sigma, name: str) -> None:
    """Raise unless a noise level is a finite number of at least 0, or a tensor without values below 0.

    A value of nan in a tensor passes, for the noise level of one image is no business of the others, whose results it
    does not touch. Tensors on other devices than the CPU are not looked at, which would wait for them.

    Raises:
        TypeError: neither a number nor a tensor.
        ValueError: a number out of range.
    """
    if isinstance(value, Tensor):
        if value.device.type == "cpu" and can_be_read(value) and bool((value < 0).any()):
            raise ValueError(f"{name} must be a noise level of at least 0, got {float(value.min())}")
    elif isinstance(value, Real) and not isinstance(value, bool):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    elif isinstance(value, str) or not hasattr(value, "__len__"):
        raise TypeError(f"{name} must be a number or a tensor, got {value!r}")


@dataclass(frozen=True)
class Noise:
    """Name one realisation of noise: the same key gives the same noise on every backend and device.

    Args:
        seed: the stream, 0 <= seed < 2**64; one per run.
        offset: the position in it, 0 <= offset < 2**63; typically the training step. Or a tensor that holds it, int64
            [] on the device of the noise, whose value only the kernels read: a CUDA graph draws new noise at every
            replay if that tensor moves on.

    Raises:
        ValueError: seed or offset out of range, or a tensor of another kind.
    """

    seed: int
    offset: int | Tensor = 0

    def __post_init__(self) -> None:
        for name, bits in (("seed", 64), ("offset", 63)):
            value = getattr(self, name)
            if name == "offset" and isinstance(value, Tensor):
                if value.dtype != torch.int64 or value.dim():
                    raise ValueError(
                        f"Noise: a tensor as offset must be int64 [], got {value.dtype} {list(value.shape)}"
                    )
            elif isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << bits:
                raise ValueError(f"Noise: {name} must be an integer in [0, 2**{bits}), got {value!r}")

    def position(self, device: torch.device | str) -> Tensor:
        """Return the offset as a tensor int64 [] on a device.

        Raises:
            ValueError: it is a tensor on another device.
        """
        if not isinstance(self.offset, Tensor):
            return torch.full((), self.offset, dtype=torch.int64, device=device)
        device, found = torch.device(device), self.offset.device
        if device.type != found.type or device.index not in (None, found.index):
            raise ValueError(f"Noise: offset must be on the device of the noise, {device}, got {found}")
        return self.offset


@dataclass(frozen=True)
class NoiseLevels:
    """State the distribution of the noise level sigma over images.

    Args:
        law: "log-uniform" or "uniform" on [low, high], or "fixed" (sigma = high, low is ignored).
        low, high: noise levels in the units of the images ([0, 1]); 0 < low <= high.
        clean_share: the probability, in [0, 1], that an image gets sigma = 0 instead.

    Raises:
        ValueError: an unknown law, or values out of range.
    """

    law: str = "log-uniform"
    low: float = 0.01
    high: float = 1.0
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise ValueError(f"NoiseLevels: law must be one of {', '.join(LAWS)}, got {self.law!r}")
        low = self.high if self.law == "fixed" else self.low
        if not 0 < low <= self.high < float("inf"):
            raise ValueError(f"NoiseLevels: expected 0 < low <= high, got low={self.low}, high={self.high}")
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"NoiseLevels: clean_share must be in [0, 1], got {self.clean_share}")
