"""A split of images that are decoded when asked for."""

import itertools
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from cdn.data.parts import Part
from cdn.data.split import ImageSplit
from cdn.errors import DataError
from cdn.images.decoder import as_tensor, central_square, resized

CACHE_BYTES = 2**30
LARGEST_UNASKED = 256  # the largest side of images that is taken where none is asked for
SAY_WHICH = "say with image_size (--image-size) which side the squares are to have"
DECODERS = min(8, os.cpu_count() or 1)


def enough(size: int, part: Part | None) -> int | Callable[[int, int], int]:
    """Return to which sides an image may be decoded, for :func:`cdn.images.decoder.decode`, if these are to be left.

    Args:
        size: the shorter side of what is to be seen.
        part: the part that is to be seen; None for the central square.
    """
    return size if part is None else lambda width, height: part.enough(size, width, height)


def check_size(image_size: int | None) -> None:
    """Raise DataError for a side of squares that no image can have."""
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size: expected at least 1 pixel, got {image_size}")


def fitted(
    image: Image.Image, shape: tuple[int, int, int], part: Part | None, where: object, *, resize: bool = True
) -> Tensor:
    """Return an image in the shape of a split, uint8 [C, H, W].

    Args:
        image: the image, decoded.
        shape: (C, H, W).
        part: which part of it to resize; None for the whole.
        where: what errors call it.
        resize: whether a whole one is cut to its central square and resized, or has to have that shape.

    Raises:
        DataError: a whole image of another size.
    """
    channels, height, width = shape
    if part is not None:
        image = resized(image, part.box(*image.size), (width, height))
    elif resize:
        image = central_square(image, height)
    elif image.size != (width, height):
        raise DataError(f"{where}: has {image.width}x{image.height} pixels and others {width}x{height}: {SAY_WHICH}")
    return as_tensor(image, channels)


class DecodedSplit(ImageSplit):
    """Decode images on demand, several at a time, and keep them all if the whole split takes at most 1 GiB.

    Args:
        labels: int64 [N].
        shape: (C, H, W) of every image.
    """

    def __init__(self, labels: Tensor, shape: tuple[int, int, int]) -> None:
        super().__init__(labels, shape)
        self._cache: Tensor | None = None  # uint8 [N, C, H, W]
        self._cached: Tensor | None = None  # bool [N]
        if len(labels) * torch.Size(shape).numel() <= CACHE_BYTES:
            self._cache = torch.empty((len(labels), *shape), dtype=torch.uint8)
            self._cached = torch.zeros(len(labels), dtype=torch.bool)

    @property
    def is_kept(self) -> bool:
        """Whether images are kept once they were decoded."""
        return self._cache is not None

    @abstractmethod
    def _decode_one(self, index: int, part: Part | None) -> Tensor:
        """Return an image or a part of it, uint8 [C, H, W]; called from several threads at once."""

    def _read(self, indices: Tensor) -> Tensor:
        if self._cache is None or self._cached is None:
            return self._decode(indices)
        missing = indices[~self._cached[indices]].unique()
        if len(missing):
            self._cache[missing] = self._decode(missing)
            self._cached[missing] = True
        return self._cache[indices]

    def _read_parts(self, indices: Tensor, parts: Sequence[Part]) -> Tensor:
        return self._decode(indices, parts)

    def _decode(self, indices: Tensor, parts: Iterable[Part | None] = itertools.repeat(None)) -> Tensor:
        images = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        # Workers of a loader are several already.
        with ThreadPoolExecutor(1 if get_worker_info() else DECODERS) as pool:
            for image, decoded in zip(images, pool.map(self._decode_one, indices.tolist(), parts)):
                image.copy_(decoded)
        return images


class ItemSplit(DecodedSplit):
    """Decode images that are items of something, without files of their own.

    Args:
        name: of the split, for errors.
        items: gives an item by index.
        labels: int64 [N].
        shape: (C, H, W) of the images.
        resize: whether images are cut to their central squares and resized to that, or have to have this shape.
    """

    def __init__(self, name: str, items: Any, labels: Tensor, shape: tuple[int, int, int], resize: bool) -> None:
        super().__init__(labels, shape)
        self.name, self.items, self.resize = name, items, resize

    @abstractmethod
    def _image(self, index: int, where: str, at_least: int | Callable[[int, int], int] | None) -> Image.Image:
        """Return an image; a larger one may come smaller, see :func:`cdn.images.decoder.decode`."""

    def _decode_one(self, index: int, part: Part | None) -> Tensor:
        where = f"{self.name}, image {index}"
        image = self._image(index, where, enough(self.shape[1], part) if self.resize else None)
        return fitted(image, self.shape, part, where, resize=self.resize)
