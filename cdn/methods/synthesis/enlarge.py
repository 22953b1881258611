"""Enlarged images, and their exact inverse."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Enlargement:
    """Enlarge images bilinearly to squares, and undo that.

    The way back is the pseudo-inverse: of an enlarged image it returns the original to rounding, of any other the image
    whose enlargement comes nearest to it. Both are linear and can be differentiated.

    Args:
        shape: (C, H, W) of the small images.
        side: of the large ones, at least H and W.

    Raises:
        ValueError: a smaller side.
    """

    def __init__(self, shape: Sequence[int], side: int) -> None:
        channels, *sizes = shape
        if side < max(sizes):
            raise ValueError(f"side: expected at least {max(sizes)}, the side of the images, got {side}")
        self.shape = (channels, side, side)
        self.rows, self.columns = (_interpolation(size, side) for size in sizes)
        self.inverse_rows, self.inverse_columns = (
            torch.linalg.pinv(m.double()).float() for m in (self.rows, self.columns)
        )

    def enlarge(self, x: Tensor) -> Tensor:
        """Return images x [..., H, W] of float32 as [..., side, side]."""
        return self.rows.to(x) @ x @ self.columns.to(x).T

    def shrink(self, y: Tensor) -> Tensor:
        """Return images y [..., side, side] of float32 as [..., H, W]."""
        return self.inverse_rows.to(y) @ y @ self.inverse_columns.to(y).T


def _interpolation(size: int, side: int) -> Tensor:
    """Return the matrix [side, size] of bilinear interpolation."""
    return F.interpolate(torch.eye(size)[None], size=side, mode="linear")[0].T
