"""One split of a dataset: labelled uint8 images, read by index."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cdn.data.parts import Part
from cdn.data.sampler import taking_turns
from cdn.errors import DataError


class ImageSplit(ABC):
    """Hold N labelled images of one shape and read any of them by index.

    Attributes:
        labels: int64 [N], none negative; `Dataset` checks them against its classes.
        shape: (C, H, W) of every image.
        exact: bool [N], False for images that are no exact originals and so stay out of any denoising PSNR.
        paths: the files of the images, N of them; none where the images are in memory.

    Raises:
        DataError: no images, or `labels` or `exact` of the wrong type or length.
    """

    paths: Sequence[Path] = ()

    def __init__(self, labels: Tensor, shape: tuple[int, int, int], exact: Tensor | None = None) -> None:
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise DataError(f"labels: expected int64 [N], got {_describe(labels)}")
        if len(labels) == 0:
            raise DataError("labels: expected at least one image, got none")
        if labels.min() < 0:
            raise DataError(f"labels: expected none below 0, got {labels.min()}")
        exact = torch.ones(len(labels), dtype=torch.bool) if exact is None else exact
        if exact.dtype != torch.bool or exact.shape != labels.shape:
            raise DataError(f"exact: expected bool {list(labels.shape)}, got {_describe(exact)}")
        self.labels, self.shape, self.exact = labels, shape, exact

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None = None, *, exact: bool = False) -> Tensor:
        """Return the indices of the first images, int64: what a limited evaluation looks at.

        Where images are sorted by class, as in folders, the classes take turns, since the first images of all would be
        those of a class or two.

        Args:
            count: how many, or fewer if there are not so many; None for all, in their own order.
            exact: only images that are exact originals.
        """
        among = self.exact.nonzero()[:, 0] if exact else torch.arange(len(self))
        labels = self.labels[among]
        if count is None or count >= len(among):
            return among
        if bool((labels.diff() >= 0).all()):
            among = among[taking_turns(labels)]
        return among[:count]

    def load(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and labels at `indices`.

        Args:
            indices: int64 [B], each in [0, N), in any order and with repeats.

        Returns:
            Images, uint8 [B, C, H, W], and labels, int64 [B]: copies that the caller may change.

        Raises:
            DataError: indices of another type or out of range, or an image that cannot be decoded.
        """
        _check_indices(indices, len(self))
        return self._read(indices), self.labels[indices]

    def images(self, indices: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return images as networks take them, float32 [B, C, H, W] in [0, 1] on a device, and labels on the CPU.

        Args, raises: as for :meth:`load`.
        """
        images, labels = self.load(indices)
        return images.to(device).float().div(255), labels

    def load_parts(self, indices: Tensor, parts: Sequence[Part]) -> Tensor:
        """Return a part of each image at `indices`, resized to the shape of the split, uint8 [B, C, H, W].

        Args:
            indices: as for :meth:`load`.
            parts: B of them.

        Raises:
            DataError: as :meth:`load`, and for images that are in memory.
        """
        _check_indices(indices, len(self))
        return self._read_parts(indices, parts)

    def in_memory(self) -> Tensor | None:
        """Return all images, uint8 [N, C, H, W], not to be changed; None if they are decoded when asked for."""
        return None

    def _read_parts(self, indices: Tensor, parts: Sequence[Part]) -> Tensor:
        raise DataError(
            "crop_area: parts are cut out of image files while these are decoded, and these images are in memory in "
            "their final size: leave it out, or train on crops with crop_size (--crop-size)"
        )

    @abstractmethod
    def _read(self, indices: Tensor) -> Tensor:
        """Return a fresh uint8 [B, C, H, W] with the images at the checked `indices`."""


class MemorySplit(ImageSplit):
    """Keep a whole split in memory.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        exact: bool [N], all True if left out.

    Raises:
        DataError: a wrong type or shape.
    """

    def __init__(self, images: Tensor, labels: Tensor, exact: Tensor | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
            raise DataError(f"images: expected uint8 [N, C, H, W], got {_describe(images)}")
        _, channels, height, width = images.shape
        super().__init__(labels, (channels, height, width), exact)
        if len(images) != len(labels):
            raise DataError(f"images: expected one per label ({len(labels)}), got {len(images)}")
        self.pixels = images

    def in_memory(self) -> Tensor:
        """Return all images, uint8 [N, C, H, W], not to be changed."""
        return self.pixels

    def _read(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


class Subset(ImageSplit):
    """Show some of the images of another split.

    Args:
        split: the other split.
        indices: int64 [N], of the images in the order they are to have here.

    Raises:
        DataError: indices of another type or out of range, or none.
    """

    def __init__(self, split: ImageSplit, indices: Tensor) -> None:
        _check_indices(indices, len(split))
        super().__init__(split.labels[indices], split.shape, split.exact[indices])
        self.split, self.indices = split, indices

    def in_memory(self) -> Tensor | None:
        """Return a copy of the images, uint8 [N, C, H, W]; None if the other split decodes them when asked for."""
        images = self.split.in_memory()
        return None if images is None else images[self.indices]

    def _read(self, indices: Tensor) -> Tensor:
        return self.split._read(self.indices[indices])

    def _read_parts(self, indices: Tensor, parts: Sequence[Part]) -> Tensor:
        return self.split._read_parts(self.indices[indices], parts)


def _check_indices(indices: Tensor, size: int) -> None:
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise DataError(f"indices: expected int64 [B], got {_describe(indices)}")
    if len(indices) and not 0 <= indices.min() <= indices.max() < size:
        raise DataError(f"indices: expected 0..{size - 1}, got {indices.min()}..{indices.max()}")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
