"""What is not finite never becomes a result: no class, no decision and no number in a file.

Functions that return tensors pass nan on, image by image; those that decide something ask here.
"""

import json
import math
from typing import Any

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


def json_text(value: Any, **options: Any) -> str:
    """Return strict JSON of nested dicts and lists, with null for numbers that are not finite.

    Args:
        value: what JSON can hold.
        options: for :func:`json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
