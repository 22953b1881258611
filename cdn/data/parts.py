"""Random parts of photographs, which training sees resized to one size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cdn.noise_keys import PARTS

ATTEMPTS = 10
RATIO = 4 / 3  # of the sides of a part, the longer one to the shorter one, at most


@dataclass(frozen=True)
class Part:
    """A random part of an image of any size: a share of its area, and the ratio of its sides (Szegedy et al. 2015).

    Args:
        least: the smallest share.
        draws: [ATTEMPTS, 4] in [0, 1): where share, ratio and place lie in their ranges. The first that fits into the
            image counts; where none does, the largest central part of an allowed ratio.
    """

    least: float
    draws: Sequence[Sequence[float]]

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the left, upper, right and lower border of the part of an image, in its pixels."""
        for share, ratio, x, y in self.draws:
            area = (self.least + (1 - self.least) * share) * width * height
            stretch = RATIO ** (2 * ratio - 1)
            across, down = round(math.sqrt(area * stretch)), round(math.sqrt(area / stretch))
            if 0 < across <= width and 0 < down <= height:
                left, top = int(x * (width - across + 1)), int(y * (height - down + 1))
                return left, top, left + across, top + down
        across, down = min(width, math.ceil(RATIO * height)), min(height, math.ceil(RATIO * width))
        left, top = (width - across) // 2, (height - down) // 2
        return left, top, left + across, top + down

    def enough(self, size: int, width: int, height: int) -> int:
        """Return by how many pixels an image may be shortened so that the sides of the part keep this size."""
        shorter = []
        for sides in ((width, height), (height, width)):  # it may be turned later
            left, top, right, bottom = self.box(*sides)
            shorter.append(min(right - left, bottom - top))
        return math.ceil(size * min(width, height) / min(shorter))


def draw_parts(batch: int, seed: int, step: int, least: float) -> list[Part]:
    """Draw the parts of the images of a step, by nothing but the arguments.

    Args:
        batch: number of images.
        seed, step: name the draw; neither negative.
        least: the smallest share of the area, above 0 and at most 1.
    """
    draws = torch.rand(batch, ATTEMPTS, 4, dtype=torch.float64, generator=PARTS.generator(seed, step))
    return [Part(least, rows) for rows in draws.tolist()]
