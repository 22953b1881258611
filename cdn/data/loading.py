"""Batches that worker processes read ahead of the steps that take them."""

import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cdn.data.decoded import DecodedSplit
from cdn.data.parts import Part
from cdn.data.split import ImageSplit
from cdn.errors import CDNError, DataError

AHEAD = 2  # batches that a worker has read before they are asked for
MOST_UNASKED = 8  # workers where nobody says how many


def workers_for(split: ImageSplit, in_parts: bool = False) -> int:
    """Return how many workers a split is read by where nobody says: none but for images that are decoded ever anew.

    Args:
        split: the images.
        in_parts: whether other parts of them are read each time.
    """
    anew = in_parts or (isinstance(split, DecodedSplit) and not split.is_kept)
    return min(MOST_UNASKED, os.cpu_count() or 1) if anew else 0


@dataclass(frozen=True)
class Wanted:
    """The images of a step.

    Attributes:
        indices: int64 [n].
        parts: n of them, which to cut out and resize; None for the whole images.
    """

    indices: Tensor
    parts: Sequence[Part] | None = None

    def read(self, split: ImageSplit) -> Tensor:
        """Return them, uint8 [n, C, H, W]; raises what :meth:`.split.ImageSplit.load` does."""
        return split.load(self.indices)[0] if self.parts is None else split.load_parts(self.indices, self.parts)


class Loader:
    """Read the images of steps, those of the next steps ahead of time.

    What a step reads is a function of its number alone, so that neither the number of workers nor their pace shows in a
    training, and any step can follow any other.

    Args:
        split: whose images.
        wanted: a function from the number of a step to the images that are wanted; it is sent to workers.
        workers: how many processes read; 0 to read when asked, in this one.
        pinned: whether images come in pinned memory, from which GPUs copy while they compute.
    """

    def __init__(
        self, split: ImageSplit, wanted: Callable[[int], Wanted], workers: int = 0, pinned: bool = False
    ) -> None:
        self.split, self.wanted, self.workers, self.pinned = split, wanted, workers, pinned
        self._next: int | None = None
        self._coming: Iterator[Tensor | CDNError] = iter(())

    def read(self, step: int) -> Tensor:
        """Return the images of a step, uint8 [n, C, H, W].

        Raises:
            DataError: an image cannot be decoded, or a worker has ended.
        """
        if not self.workers:
            return self.wanted(step).read(self.split)
        if step != self._next:
            try:
                self._coming = self._from(step)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise DataError(
                    f"workers: the images cannot be read by other processes, which take what can be pickled ({error}): "
                    "give 0 (--workers 0)"
                ) from None
        self._next = None  # where this fails, the next begins anew
        try:
            found = next(self._coming)
        # torch says RuntimeError where it finds a worker dead; where that one dies as its images are fetched, the
        # connection to it fails first.
        except (RuntimeError, OSError, EOFError) as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise DataError(f"a worker that reads images has ended: {cause}") from None
        if isinstance(found, CDNError):
            raise found
        self._next = step + 1
        return found

    def _from(self, step: int) -> Iterator[Tensor | CDNError]:
        """Return an iterator over the images of a step and those after it."""
        loader: Any = DataLoader(
            cast(Dataset[Tensor], _Steps(self.split, self.wanted)),
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
    threading.Thread(target=_end_with_the_training, daemon=True).start()


def _end_with_the_training() -> None:
    """End this worker once the training is gone, though it was killed.

    torch only looks whether the process that forked this one lives, which is a server here, and the server lives on for
    the sake of its workers.
    """
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)


class _Steps:
    """The steps of a training by number, for workers."""

    def __init__(self, split: ImageSplit, wanted: Callable[[int], Wanted]) -> None:
        self.split, self.wanted = split, wanted

    def __getitem__(self, step: int) -> Tensor | CDNError:
        try:
            return self.wanted(step).read(self.split)
        except CDNError as error:
            return error  # raised there, it would come with the worker's traceback
