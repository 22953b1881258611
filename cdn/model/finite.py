"""Checks for nan and infinity, which never become a class or a decision.

Functions that return tensors pass nan on, image by image; those that decide something ask here.
"""

from torch import Tensor, where

from cdn.errors import NotFiniteError
from cdn_kernels.transforms import can_be_read

UNDECIDED = -1


def decided(values: Tensor) -> Tensor:
    """Return the class of the largest value of each row [..., C], int64 [...], or -1 where that is nan or infinite.

    A value of -inf is that of a class which is impossible, and leaves the others to be chosen from.
    """
    return where(values.amax(-1).isfinite(), values.argmax(-1), UNDECIDED)


def require_finite(values: Tensor, sentence: str) -> None:
    """Raise NotFiniteError with a sentence if a tensor, as far as it can be read, holds nan or infinity."""
    if can_be_read(values) and not values.isfinite().all():
        raise NotFiniteError(sentence)
