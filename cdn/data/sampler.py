"""Which images a training step sees, as a pure function of the step."""

from functools import lru_cache

import torch
from torch import Tensor

from cdn.data.generator import keyed_generator
from cdn.errors import DataError


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Return how many whole batches `size` images make; the remainder of an epoch is dropped.

    Raises:
        DataError: `batch_size` is not in 1..size.
    """
    if not 1 <= batch_size <= size:
        raise DataError(f"batch_size: expected 1..{size} (the number of training images), got {batch_size}")
    return size // batch_size


def batch_indices(size: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Return the indices of the images of training step `step`, counted from 0.

    Every epoch walks through its own permutation, so a resumed run sees exactly the batches that an unbroken
    one would have seen.

    Returns:
        int64 [batch_size], distinct, each in [0, size).

    Raises:
        DataError: `batch_size` is not in 1..size, or `step` or `seed` is negative.
    """
    epoch, batch = divmod(step, steps_per_epoch(size, batch_size))
    start = batch * batch_size
    # The clone keeps a caller's in-place edit out of the cached permutation.
    return _permutation(size, seed, epoch)[start:start + batch_size].clone()


@lru_cache(maxsize=1)
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=keyed_generator("order", seed, epoch))
