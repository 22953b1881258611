"""Training batches on a device: chosen, moved and mirrored as a pure function of the step."""

import functools
import time

import torch
from torch import Tensor

from cdn.data.augment import Augmentation
from cdn.data.loading import Loader, Wanted, workers_for
from cdn.data.parts import draw_parts
from cdn.data.sampler import batch_indices
from cdn.data.split import ImageSplit
from cdn_kernels.phases import phase

AHEAD = 64


class Batches:
    """The batches of a split on a device, augmented.

    What a step draws depends on nothing but the seed and its number. It is drawn on the CPU, for many steps at once,
    and images that are in memory are put on the device once and for all: a step then finds all that it needs there, in
    tensors that stay where they are. Images that have to be decoded are sent step by step.

    Args:
        split: the images.
        batch_size: images of a step.
        seed: of order and augmentation.
        device: where the batches are wanted.
        augmentation: an :class:`Augmentation` of images of this shape.
        places: which images of a batch are wanted, all if left out; others are not even read.
        workers: how many processes read images ahead of the steps; as :func:`.loading.workers_for` says if left out.
        crop_area: read random parts of images, of at least this share of their area; None for whole images.

    Attributes:
        waited: seconds in all that steps waited for images to be decoded.

    Raises:
        DataError: more images in a batch than in the split, or parts of images that are in memory.
    """

    def __init__(
        self,
        split: ImageSplit,
        batch_size: int,
        seed: int,
        device: torch.device,
        augmentation: Augmentation,
        places: range | None = None,
        workers: int | None = None,
        crop_area: float | None = None,
    ) -> None:
        self.places = slice(0, batch_size) if places is None else slice(places.start, places.stop)
        count = self.places.stop - self.places.start
        self.split, self.batch_size, self.seed, self.augmentation = split, batch_size, seed, augmentation
        self.loader: Loader | None = None
        if crop_area is not None:
            split.load_parts(torch.zeros(0, dtype=torch.int64), [])  # it says if it cannot
        images = split.in_memory() if crop_area is None else None
        if images is None:
            wanted = functools.partial(_wanted, len(split), batch_size, seed, self.places, crop_area)
            workers = workers_for(split, crop_area is not None) if workers is None else workers
            self.loader = Loader(split, wanted, workers, device.type == "cuda")
        self.images = (
            torch.zeros(count, *split.shape, dtype=torch.uint8, device=device) if images is None else images.to(device)
        )
        self.labels = split.labels.to(device)
        # For each of some steps from the first on: the indices of its images, then what the augmentation draws.
        self.plan = torch.zeros(AHEAD, 4, count, dtype=torch.int64, device=device)
        self.waited = 0.0
        self.row = torch.zeros(1, dtype=torch.int64, device=device)
        self.first: int | None = None

    def seek(self, step: int) -> None:
        """Let the next :meth:`read` give the batch of a step, counted from 0.

        Raises:
            DataError: `step` is negative, or an image cannot be decoded.
        """
        with phase("data"):
            first = step - step % AHEAD
            if first != self.first:
                _send(torch.stack([self._draw(number) for number in range(first, first + AHEAD)]), self.plan)
                self.first = first
            self.row.fill_(step - first)
        if self.loader is not None:
            start = time.perf_counter()
            with phase("waiting"):
                images = self.loader.read(step)
            self.waited += time.perf_counter() - start
            with phase("data"):
                _send(images, self.images)

    def read(self) -> tuple[Tensor, Tensor]:
        """Return uint8 images [n, C, H, W] and int64 labels [n] of these places; all is done on the device."""
        indices, *draws = self.plan.index_select(0, self.row)[0]
        images = self.images.index_select(0, indices) if self.loader is None else self.images
        return self.augmentation.apply(images, draws), self.labels.index_select(0, indices)

    def _draw(self, step: int) -> Tensor:
        indices = _indices(len(self.split), self.batch_size, self.seed, self.places, step)
        augmentation = self.augmentation.draw(self.batch_size, self.seed, step)[:, self.places]
        return torch.cat([indices[None], augmentation])


def _wanted(size: int, batch_size: int, seed: int, places: slice, crop_area: float | None, step: int) -> Wanted:
    """Return what to read for some places of a step."""
    parts = None if crop_area is None else draw_parts(batch_size, seed, step, crop_area)[places]
    return Wanted(_indices(size, batch_size, seed, places, step), parts)


def _indices(size: int, batch_size: int, seed: int, places: slice, step: int) -> Tensor:
    """Return the indices of the images of some places of a step."""
    return batch_indices(size, batch_size, step, seed)[places]


def _send(source: Tensor, target: Tensor) -> None:
    """Copy from the CPU to a device, without waiting for what the device still does with the target."""
    if target.is_cuda:
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)
