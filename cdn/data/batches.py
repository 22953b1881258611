"""Training batches on a device: chosen, moved and mirrored as a pure function of the step."""

import functools

import torch
from torch import Tensor

from cdn.data.augment import Augmentation
from cdn.data.loading import Loader, workers_for
from cdn.data.sampler import batch_indices
from cdn.data.split import ImageSplit

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

    Raises:
        DataError: more images in a batch than in the split.
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
    ) -> None:
        self.places = slice(0, batch_size) if places is None else slice(places.start, places.stop)
        count = self.places.stop - self.places.start
        self.split, self.batch_size, self.seed, self.augmentation = split, batch_size, seed, augmentation
        images = split.in_memory()
        self.loader: Loader | None = None
        if images is None:
            wanted = functools.partial(_indices, len(split), batch_size, seed, self.places)
            self.loader = Loader(
                split, wanted, workers_for(split) if workers is None else workers, device.type == "cuda"
            )
        self.images = (
            torch.zeros(count, *split.shape, dtype=torch.uint8, device=device) if images is None else images.to(device)
        )
        self.labels = split.labels.to(device)
        # For each of some steps from the first on: the indices of its images, then what the augmentation draws.
        self.plan = torch.zeros(AHEAD, 4, count, dtype=torch.int64, device=device)
        self.row = torch.zeros(1, dtype=torch.int64, device=device)
        self.first: int | None = None

    def seek(self, step: int) -> None:
        """Let the next :meth:`read` give the batch of a step, counted from 0.

        Raises:
            DataError: `step` is negative, or an image cannot be decoded.
        """
        first = step - step % AHEAD
        if first != self.first:
            _send(torch.stack([self._draw(number) for number in range(first, first + AHEAD)]), self.plan)
            self.first = first
        self.row.fill_(step - first)
        if self.loader is not None:
            _send(self.loader.read(step), self.images)

    def read(self) -> tuple[Tensor, Tensor]:
        """Return uint8 images [n, C, H, W] and int64 labels [n] of these places; all is done on the device."""
        indices, *draws = self.plan.index_select(0, self.row)[0]
        images = self.images.index_select(0, indices) if self.loader is None else self.images
        return self.augmentation.apply(images, draws), self.labels.index_select(0, indices)

    def _draw(self, step: int) -> Tensor:
        indices = _indices(len(self.split), self.batch_size, self.seed, self.places, step)
        augmentation = self.augmentation.draw(self.batch_size, self.seed, step)[:, self.places]
        return torch.cat([indices[None], augmentation])


def _indices(size: int, batch_size: int, seed: int, places: slice, step: int) -> Tensor:
    """Return the indices of the images of some places of a step."""
    return batch_indices(size, batch_size, step, seed)[places]


def _send(source: Tensor, target: Tensor) -> None:
    """Copy from the CPU to a device, without waiting for what the device still does with the target."""
    if target.is_cuda:
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)
