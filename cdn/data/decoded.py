"""A split of images that are decoded when asked for."""

import os
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from cdn.data.split import ImageSplit

CACHE_BYTES = 2**30
LARGEST_UNASKED = 256  # the largest side of images that is taken where none is asked for
SAY_WHICH = "say with image_size (--image-size) which side the squares are to have"
DECODERS = min(8, os.cpu_count() or 1)


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
    def _decode_one(self, index: int) -> Tensor:
        """Return an image, uint8 [C, H, W]; called from several threads at once."""

    def _read(self, indices: Tensor) -> Tensor:
        if self._cache is None or self._cached is None:
            return self._decode(indices)
        missing = indices[~self._cached[indices]].unique()
        if len(missing):
            self._cache[missing] = self._decode(missing)
            self._cached[missing] = True
        return self._cache[indices]

    def _decode(self, indices: Tensor) -> Tensor:
        images = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        # Workers of a loader are several already.
        with ThreadPoolExecutor(1 if get_worker_info() else DECODERS) as pool:
            for image, decoded in zip(images, pool.map(self._decode_one, indices.tolist())):
                image.copy_(decoded)
        return images
