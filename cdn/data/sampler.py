"""Which images a training step sees, as a pure function of the step."""

from functools import lru_cache

import torch
from torch import Tensor

from cdn.errors import DataError
from cdn.noise_keys import ORDER, SUBSET


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
        DataError: `batch_size` is not in 1..size.
        ValueError: `step` or `seed` is negative.
    """
    epoch, batch = divmod(step, steps_per_epoch(size, batch_size))
    start = batch * batch_size
    # The clone keeps a caller's in-place edit out of the cached permutation.
    return _permutation(size, seed, epoch)[start : start + batch_size].clone()


def balanced_indices(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose images at random that hold the classes in the proportions of all.

    A smaller choice of the same seed is the beginning of a larger one.

    Args:
        labels: int64 [N].
        count: how many to choose; each class gets its share to within one image.
        seed: of the choice.

    Returns:
        int64 [count], distinct.

    Raises:
        DataError: `count` is not in 1..N.
    """
    if not 1 <= count <= len(labels):
        raise DataError(f"train_images: expected 1..{len(labels)} (the number of training images), got {count}")
    order = torch.randperm(len(labels), generator=SUBSET.generator(seed))
    return order[taking_turns(labels[order])][:count]


def taking_turns(labels: Tensor) -> Tensor:
    """Return the order in which the classes take turns, each by its share, and keep the order of their images.

    Args:
        labels: int64 [N].

    Returns:
        int64 [N], a permutation.
    """
    # The k-th of the n images of a class stands at (k + 1/2) / n.
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return place.argsort(stable=True)


@lru_cache(maxsize=1)
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=ORDER.generator(seed, epoch))
