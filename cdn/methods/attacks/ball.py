"""The set that an attack may search: images in [0, 1] within a radius of a given image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdn_kernels import Noise, standard_normal

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Ball:
    """All images of [0, 1] no farther than a radius from an image x.

    Args:
        norm: "linf", the largest absolute difference of any value, or "l2", the root of the sum of squares over all
            values of an image.
        radius: in units where white is 1.

    Raises:
        ValueError: an unknown norm, or a radius that is negative or not finite.

    All methods take and return batches [B, C, H, W], with x in [0, 1].
    """

    norm: str
    radius: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {self.norm!r}")
        if not 0 <= self.radius < math.inf:
            raise ValueError(f"radius: expected a finite number of at least 0, got {self.radius!r}")

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """Return an image of the ball around x near y.

        In L-infinity it is the nearest one. In L2, y is first drawn to the ball and then clipped to [0, 1], which
        brings it nearer to x: inside both, but not always the nearest such image.
        """
        change = y - x
        if self.norm == "linf":
            change = change.clamp(-self.radius, self.radius)
        else:
            change = change * (self.radius / _length(change).clamp(min=1e-30)).clamp(max=1)
        return (x + change).clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the change of unit norm along which a function of this gradient rises most; 0 where that is 0."""
        if self.norm == "linf":
            return gradient.sign()
        # Taking out the largest value first keeps the squares of tiny gradients from vanishing.
        largest = gradient.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        gradient = gradient / torch.where(largest > 0, largest, 1)
        return gradient / _length(gradient).clamp(min=1e-30)

    def draw(self, x: Tensor, noise: Noise) -> Tensor:
        """Return a random image of the ball around x: uniform in it, but for the clipping to [0, 1].

        Args:
            noise: a key, which stands for the position after it too; its places are those of the images.
        """
        if self.norm == "linf":
            change = 2 * uniform(x.shape, noise, x) - 1
        else:
            change = standard_normal(x.shape, noise, dtype=x.dtype, device=x.device)
            share = uniform((len(x), 1, 1, 1), noise.moved(1), x) ** (1 / math.prod(x.shape[1:]))
            change = change * (share / _length(change))
        return self.project(x, x + self.radius * change)

    def amplitude(self, x: Tensor) -> float:
        """Return by how much all values of x can change at once: a float."""
        return self.radius if self.norm == "linf" else self.radius / math.sqrt(x[0].numel())


def uniform(shape: Sequence[int], noise: Noise, like: Tensor) -> Tensor:
    """Return numbers that are uniform in [0, 1], a row for each image, with the dtype and device of a tensor."""
    return (1 + torch.erf(standard_normal(shape, noise, dtype=like.dtype, device=like.device) / math.sqrt(2))) / 2


def distance(norm: str, x: Tensor, y: Tensor) -> Tensor:
    """Return how far images y are from x, both [B, C, H, W], in one of ``NORMS``: [B]."""
    return torch.linalg.vector_norm((y - x).flatten(1), {"linf": math.inf, "l2": 2}[norm], dim=1)


def diameter(norm: str, shape: Sequence[int]) -> float:
    """Return the radius of a ball that holds every image of a shape (C, H, W), whatever its centre."""
    return 1.0 if norm == "linf" else math.sqrt(math.prod(shape))


def _length(change: Tensor) -> Tensor:
    return torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
