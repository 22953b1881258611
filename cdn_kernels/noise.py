"""Keys of counter-based noise, and the laws that noise levels are drawn from.

Nothing here draws anything: these are the small values that every backend takes and that a run writes into its
configuration. The drawing is specified in :mod:`cdn_kernels.reference`.
"""

import math
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from cdn_kernels.transforms import can_be_read

# The highest noise level that commands take: above it nothing is left of an image in [0, 1].
HIGHEST_LEVEL = 10.0
SEEDS = 1 << 64  # how many seeds there are
PLACES = 1 << 32  # how many places of images there are in a batch
LAWS = ("log-uniform", "uniform", "fixed")
CLEAN_LAWS = ("independent", "stratified")

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
        places: the place in the whole batch of the first image that noise is drawn for, 0 <= places < 2**32; or of each
            image, int64 [B] on the device of the noise. An image gets the noise of its place, in whatever part or order
            of the batch it comes: the second half of 64 images is drawn with places=32. Places count modulo 2**32, and
            values on another device than the CPU are not looked at, which would wait for them.

    Raises:
        ValueError: seed, offset or places out of range, or a tensor of another kind.
    """

    seed: int
    offset: int | Tensor = 0
    places: int | Tensor = 0

    def __post_init__(self) -> None:
        _check_places(self.places)
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

    def moved(self, distance: int) -> "Noise":
        """Return the key of another position, so much further in the stream, for the same places.

        Raises:
            ValueError: that position is out of range.
        """
        return replace(self, offset=self.offset + distance)

    def chosen(self, index: Tensor) -> "Noise":
        """Return the key that draws for some images of a batch what this one draws for them.

        Args:
            index: which images of the batch, int64 [n], in any order.
        """
        whole = self.places
        return replace(self, places=whole[index] if isinstance(whole, Tensor) else (index + whole) % PLACES)

    def placed(self, batch: int, device: torch.device | str) -> Tensor:
        """Return the places of the images of a batch, int64 [batch], on a device.

        Raises:
            ValueError: they are a tensor of another length, or on another device.
        """
        if not isinstance(self.places, Tensor):
            return torch.arange(self.places, self.places + batch, dtype=torch.int64, device=device)
        self.check_places(batch, device)
        return self.places

    def check_places(self, batch: int, device: torch.device | str) -> None:
        """Raise ValueError if places are a tensor of another length than the batch, or on another device."""
        if not isinstance(self.places, Tensor):
            return
        if len(self.places) != batch:
            raise ValueError(f"Noise: places must be one per image, [{batch}], got {list(self.places.shape)}")
        device, found = torch.device(device), self.places.device
        if device.type != found.type or device.index not in (None, found.index):
            raise ValueError(f"Noise: places must be on the device of the noise, {device}, got {found}")


def _check_places(places: object) -> None:
    if not isinstance(places, Tensor):
        if isinstance(places, bool) or not isinstance(places, int) or not 0 <= places < PLACES:
            raise ValueError(f"Noise: places must be an integer in [0, 2**32) or a tensor of them, got {places!r}")
    elif places.dtype != torch.int64 or places.dim() != 1:
        raise ValueError(f"Noise: a tensor as places must be int64 [B], got {places.dtype} {list(places.shape)}")
    elif places.device.type == "cpu" and can_be_read(places) and bool(((places < 0) | (places >= PLACES)).any()):
        raise ValueError(
            f"Noise: places must be in [0, 2**32), got values from {int(places.min())} to {int(places.max())}"
        )


@dataclass(frozen=True)
class NoiseLevels:
    """State the distribution of the noise level sigma over images.

    Args:
        law: "log-uniform" or "uniform" on [low, high], or "fixed" (sigma = high, low is ignored).
        low, high: noise levels in the units of the images ([0, 1]); 0 < low <= high.
        clean_share: the probability, in [0, 1], that an image gets sigma = 0 instead.
        clean: "stratified": among any consecutive places of a batch the share is met to within one image, so that the
            number of clean images hardly changes from step to step (:func:`cdn_kernels.reference.is_clean`); or
            "independent": every image for itself, as in versions before 0.2.0.

    Raises:
        ValueError: an unknown law, or values out of range.
    """

    law: str = "log-uniform"
    low: float = 0.01
    high: float = 1.0
    clean_share: float = 0.0
    clean: str = "stratified"

    def __post_init__(self) -> None:
        if self.clean not in CLEAN_LAWS:
            raise ValueError(f"NoiseLevels: clean must be one of {', '.join(CLEAN_LAWS)}, got {self.clean!r}")
        if self.law not in LAWS:
            raise ValueError(f"NoiseLevels: law must be one of {', '.join(LAWS)}, got {self.law!r}")
        low = self.high if self.law == "fixed" else self.low
        if not 0 < low <= self.high < float("inf"):
            raise ValueError(f"NoiseLevels: expected 0 < low <= high, got low={self.low}, high={self.high}")
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"NoiseLevels: clean_share must be in [0, 1], got {self.clean_share}")
