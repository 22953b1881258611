"""Batches that worker processes read ahead of the steps that take them."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cdn.data.decoded import DecodedSplit
from cdn.data.split import ImageSplit
from cdn.errors import CDNError, DataError

AHEAD = 2  # batches that a worker has read before they are asked for
MOST_UNASKED = 8  # workers where nobody says how many


def workers_for(split: ImageSplit) -> int:
    """Return how many workers a split is read by where nobody says: none but for images that are decoded ever anew."""
    anew = isinstance(split, DecodedSplit) and not split.is_kept
    return min(MOST_UNASKED, os.cpu_count() or 1) if anew else 0


class Loader:
    """Read the images of steps, those of the next steps ahead of time.

    What a step reads is a function of its number alone, so that neither the number of workers nor their pace shows in a
    training, and any step can follow any other.

    Args:
        split: whose images.
        indices: a function from the number of a step to the indices of its images, int64 [n]; it is sent to workers.
        workers: how many processes read; 0 to read when asked, in this one.
        pinned: whether images come in pinned memory, from which GPUs copy while they compute.
    """

    def __init__(
        self, split: ImageSplit, indices: Callable[[int], Tensor], workers: int = 0, pinned: bool = False
    ) -> None:
        self.split, self.indices, self.workers, self.pinned = split, indices, workers, pinned
        self._next: int | None = None
        self._coming: Iterator[Tensor | CDNError] = iter(())

    def read(self, step: int) -> Tensor:
        """Return the images of a step, uint8 [n, C, H, W].

        Raises:
            DataError: an image cannot be decoded, or a worker has ended.
        """
        if not self.workers:
            return self.split.load(self.indices(step))[0]
        if step != self._next:
            self._coming = self._from(step)
        self._next = None  # where this fails, the next begins anew
        try:
            found = next(self._coming)
        except RuntimeError as error:
            cause = " ".join(str(error).split())[:160]
            raise DataError(f"a process that reads images has ended: {cause}") from None
        if isinstance(found, CDNError):
            raise found
        self._next = step + 1
        return found

    def _from(self, step: int) -> Iterator[Tensor | CDNError]:
        """Return an iterator over the images of a step and those after it."""
        loader: Any = DataLoader(
            cast(Dataset[Tensor], _Steps(self.split, self.indices)),
            batch_size=None,  # an item is a batch already
            sampler=itertools.count(step),
            worker_init_fn=_begin,
            num_workers=self.workers,
            prefetch_factor=AHEAD,
            pin_memory=self.pinned,
            # Forked ones would inherit locks of OpenMP, whose owners they have not.
            multiprocessing_context="forkserver" if os.name == "posix" else "spawn",
        )
        return iter(loader)


def _begin(number: int) -> None:
    """Prepare a worker: Ctrl-C reaches it too, and ends a training in order, which may still want what it reads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


class _Steps:
    """The steps of a training by number, for workers."""

    def __init__(self, split: ImageSplit, indices: Callable[[int], Tensor]) -> None:
        self.split, self.indices = split, indices

    def __getitem__(self, step: int) -> Tensor | CDNError:
        try:
            return self.split.load(self.indices(step))[0]
        except CDNError as error:
            return error  # raised there, it would come with the worker's traceback
