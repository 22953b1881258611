"""Linear measurements of images, with their adjoints and pseudo-inverses.

All act on images [B, C, H, W] of any floating dtype and device, each image by itself, and give measurements in that
dtype on that device.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from cdn.noise_keys import MEASUREMENTS


class Operator(ABC):
    """Measure images: ``m = A x``.

    The rows of most operators are orthonormal, so that the pseudo-inverse is the adjoint; the others say so.

    Args:
        shape: (C, H, W) of the images.

    Attributes:
        shape: the same.
        size: the number of values that are measured independently of each other, the rank of A.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    @property
    @abstractmethod
    def size(self) -> int:
        """Rank of A."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A x``.

        Args:
            x: images [B, C, H, W].

        Returns:
            Measurements [B, ...], whose shape is the operator's own.

        Raises:
            ValueError: images of another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"x must be images of the shape [B, {', '.join(map(str, self.shape))}] that the operator "
                f"was made for, got {list(x.shape)}"
            )
        return self._forward(x)

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor:
        """Return ``A x`` for images of the right shape."""

    @abstractmethod
    def adjoint(self, m: Tensor) -> Tensor:
        """Return ``A^T m``, images [B, C, H, W], for measurements m."""

    def pinv(self, m: Tensor) -> Tensor:
        """Return ``A^+ m``, the shortest of the images that come closest to measurements m."""
        return self.adjoint(m)

    def project(self, x: Tensor) -> Tensor:
        """Return ``A^+ A x``, the part of images that the measurements determine."""
        return self.pinv(self.forward(x))

    def grey(self, m: Tensor) -> Tensor:
        """Return the images with measurements m that come closest to mid-grey, 0.5 everywhere."""
        middle = torch.full((1, *self.shape), 0.5, dtype=m.dtype, device=m.device)
        return middle + self.pinv(m - self.forward(middle))

    def picture(self, m: Tensor) -> Tensor:
        """Return measurements as images to look at: the blurred ones, or else those of :meth:`grey`."""
        return self.grey(m)


class _Pixels(Operator):
    """Keep some pixels of an image, with all of their channels: measurements [B, C, kept].

    Args:
        shape: (C, H, W) of the images.
        kept: bool [H, W].
    """

    def __init__(self, shape: Sequence[int], kept: Tensor) -> None:
        super().__init__(shape)
        self.kept = kept.flatten().nonzero()[:, 0]

    @property
    def size(self) -> int:
        """The number of values kept, in all channels."""
        return self.shape[0] * len(self.kept)

    def _forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, self.kept.to(x.device)]

    def adjoint(self, m: Tensor) -> Tensor:
        """Return ``A^T m``: the values in their places, and 0 elsewhere."""
        x = m.new_zeros(len(m), self.shape[0], self.shape[1] * self.shape[2])
        x[:, :, self.kept.to(m.device)] = m
        return x.unflatten(2, self.shape[1:])


class Inpainting(_Pixels):
    """Lose a square block in the middle of the image.

    Args:
        shape: (C, H, W) of the images.
        block: side of the block in pixels, smaller than the image.

    Raises:
        ValueError: a block that does not leave a frame of known pixels, or no block.
    """

    def __init__(self, shape: Sequence[int], block: int) -> None:
        _, height, width = shape
        if not 1 <= block < min(height, width):
            raise ValueError(
                f"block must be in [1, {min(height, width) - 1}] pixels for images of {height} x {width}, got {block}"
            )
        top, left = (height - block) // 2, (width - block) // 2
        kept = torch.ones(height, width, dtype=torch.bool)
        kept[top : top + block, left : left + block] = False
        super().__init__(shape, kept)


class MissingPixels(_Pixels):
    """Keep pixels at random places, the same in all images.

    Args:
        shape: (C, H, W) of the images.
        ratio: share of the pixels that is kept, in (0, 1].
        seed: of the places.

    Raises:
        ValueError: a ratio out of range, or too small to keep a pixel.
    """

    def __init__(self, shape: Sequence[int], ratio: float, seed: int = 0) -> None:
        _, height, width = shape
        count = _share("ratio", ratio, height * width)
        kept = torch.zeros(height * width, dtype=torch.bool)
        kept[torch.randperm(height * width, generator=MEASUREMENTS.generator(seed))[:count]] = True
        super().__init__(shape, kept)


class SuperResolution(Operator):
    """Average over squares of pixels: measurements [B, C, H / factor, W / factor].

    The rows are orthogonal, of norm ``1 / factor``; the pseudo-inverse repeats each value.

    Args:
        shape: (C, H, W) of the images.
        factor: side of the squares in pixels; it divides H and W.

    Raises:
        ValueError: a factor below 1, or one that does not divide the sides.
    """

    def __init__(self, shape: Sequence[int], factor: int) -> None:
        _, height, width = shape
        if factor < 1 or height % factor or width % factor:
            raise ValueError(
                f"factor must be at least 1 and divide the sides of images of {height} x {width}, got {factor}"
            )
        super().__init__(shape)
        self.factor = factor

    @property
    def size(self) -> int:
        """The number of squares, in all channels."""
        return math.prod(self.shape) // self.factor**2

    def _forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, self.factor)

    def adjoint(self, m: Tensor) -> Tensor:
        """Return ``A^T m``: each value spread over its square."""
        return self.pinv(m) / self.factor**2

    def pinv(self, m: Tensor) -> Tensor:
        """Return ``A^+ m``: each value repeated over its square."""
        return m.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


class Deblurring(Operator):
    """Blur by a Gaussian and lose what it weakens most: measurements [B, C, H, W].

    The image is mirrored at its borders, where a Gaussian of deviation s multiplies the cosine of frequency w
    (radians per pixel) by ``exp(-s^2 w^2 / 2)``. Cosines that come out weaker than ``cutoff`` are dropped, for no
    pseudo-inverse would bring them back in finite precision. A is symmetric; its rows are not orthonormal.

    Args:
        shape: (C, H, W) of the images.
        blur: deviation s of the Gaussian in pixels, positive.
        cutoff: smallest factor that is kept, in (0, 1].

    Raises:
        ValueError: a blur or cut-off out of range.
    """

    def __init__(self, shape: Sequence[int], blur: float, cutoff: float = 0.05) -> None:
        if not 0 < blur < math.inf:
            raise ValueError(f"blur must be a deviation above 0 pixels, got {blur}")
        if not 0 < cutoff <= 1:
            raise ValueError(f"cutoff must be in (0, 1], got {cutoff}")
        super().__init__(shape)
        rows, columns = (
            torch.exp(-0.5 * (blur * math.pi / size * torch.arange(size, dtype=torch.float64)).square())
            for size in self.shape[1:]
        )
        gain = rows[:, None] * columns
        self.gain = torch.where(gain >= cutoff, gain, 0.0)

    @property
    def size(self) -> int:
        """The number of cosines kept, in all channels."""
        return self.shape[0] * int(self.gain.count_nonzero())

    def _forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self.gain)

    def adjoint(self, m: Tensor) -> Tensor:
        """Return ``A^T m``, which is ``A m``."""
        return self._filter(m, self.gain)

    def pinv(self, m: Tensor) -> Tensor:
        """Return ``A^+ m``: the cosines that were kept, as strong as before."""
        return self._filter(m, torch.where(self.gain > 0, 1 / self.gain, 0.0))

    def picture(self, m: Tensor) -> Tensor:
        """Return the measurements, which are blurred images."""
        return m

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        return _cosines(gain.to(x) * _cosines(x, (2, 3)), (2, 3), inverse=True)


class CompressiveSensing(Operator):
    """Project onto random orthonormal vectors: measurements [B, size].

    The vectors are cosines over rows, columns and channels, drawn at random, times one random sign per value, which
    makes them as unlike an image as white noise; so they need no memory and little time in images of any size
    ("structurally random matrices", Do, Gan, Nguyen & Tran 2012).

    Args:
        shape: (C, H, W) of the images.
        ratio: number of vectors as a share of C H W, in (0, 1].
        seed: of the vectors.

    Raises:
        ValueError: a ratio out of range, or too small for one vector.
    """

    def __init__(self, shape: Sequence[int], ratio: float, seed: int = 0) -> None:
        super().__init__(shape)
        values = math.prod(self.shape)
        count = _share("ratio", ratio, values)
        generator = MEASUREMENTS.generator(seed)
        self.flipped = torch.randint(2, self.shape, generator=generator).bool()
        self.rows = torch.randperm(values, generator=generator)[:count]

    @property
    def size(self) -> int:
        """The number of vectors."""
        return len(self.rows)

    def _forward(self, x: Tensor) -> Tensor:
        return _cosines(self._flip(x), (1, 2, 3)).flatten(1)[:, self.rows.to(x.device)]

    def adjoint(self, m: Tensor) -> Tensor:
        """Return ``A^T m``: the sum of the vectors, each times its measurement."""
        coefficients = m.new_zeros(len(m), math.prod(self.shape))
        coefficients[:, self.rows.to(m.device)] = m
        return self._flip(_cosines(coefficients.unflatten(1, self.shape), (1, 2, 3), inverse=True))

    def _flip(self, x: Tensor) -> Tensor:
        return torch.where(self.flipped.to(x.device), -x, x)


def _share(name: str, ratio: float, total: int) -> int:
    """Return how many of a total a share in (0, 1] is."""
    count = round(ratio * total) if 0 < ratio <= 1 else 0
    if count < 1:
        raise ValueError(f"{name} must be in (0, 1] and keep at least one of {total} values, got {ratio}")
    return count


def _cosines(x: Tensor, dims: Sequence[int], inverse: bool = False) -> Tensor:
    """Return the orthonormal discrete cosine transform (DCT-II) of x over some dimensions, or its inverse."""
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 would round the measurements
        for dim in dims:
            basis = _cosine_basis(x.shape[dim], x.dtype, x.device)
            x = torch.movedim(torch.movedim(x, dim, -1) @ (basis if inverse else basis.T), -1, dim)
        return x


@lru_cache(maxsize=16)
def _cosine_basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthogonal matrix [size, size] whose row k is the cosine of frequency ``pi k / size``."""
    with torch.inference_mode(False):  # what is cached must serve outside of inference mode too
        k = torch.arange(size, dtype=torch.float64)
        basis = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2 / size)
        basis[0] /= math.sqrt(2)
        return basis.to(device, dtype)


# Problems of restoration by name: functions of the shape (C, H, W) of images and of the options of all problems that
# return the operator.
PROBLEMS: dict[str, Callable[..., Operator]] = {
    "inpainting": lambda shape, block, **_: Inpainting(shape, block or max(min(shape[1:]) * 3 // 8, 1)),
    "missing-pixels": lambda shape, ratio, seed, **_: MissingPixels(shape, ratio, seed),
    "super-resolution": lambda shape, factor, **_: SuperResolution(shape, factor),
    "deblurring": lambda shape, blur, **_: Deblurring(shape, blur),
    "compressive-sensing": lambda shape, ratio, seed, **_: CompressiveSensing(shape, ratio, seed),
}
