"""Data sets of your own in Python: whatever has a length and gives (image, label) by index."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdn.data.dataset import OWN, Dataset
from cdn.data.decoded import DecodedSplit, fitted
from cdn.data.parts import Part
from cdn.errors import DataError

# Attributes under which data sets keep the labels of all images, as those of torchvision do.
LABELS = ("targets", "labels")


class OwnSplit(DecodedSplit):
    """Read the images of a map-style data set.

    Args:
        name: of the split, for errors.
        items: gives (image, label) by index.
        labels: int64 [N].
        shape: (C, H, W) of the images.
        resize: whether images are cut to their central squares and resized to that, or have to have this shape.
    """

    def __init__(self, name: str, items: Any, labels: Tensor, shape: tuple[int, int, int], resize: bool) -> None:
        super().__init__(labels, shape)
        self.name, self.items, self.resize = name, items, resize

    def _decode_one(self, index: int, part: Part | None) -> Tensor:
        where = f"{self.name}, image {index}"
        return fitted(_image(self.items, index, where), self.shape, part, where, resize=self.resize)


def own_dataset(train: Any, test: Any, classes: Sequence[str] | None = None, image_size: int | None = None) -> Dataset:
    """Return a data set of two map-style ones, such as those of torchvision, for ``cdn.training.loop.train``.

    Args:
        train, test: have a length, and give (image, label) by index: a Pillow image, or uint8 [H, W] or [H, W, C], as a
            NumPy array, or [C, H, W] as a tensor; and a number from 0 on. They change nothing at random: the training
            crops and mirrors by numbers of its own. Labels of all images are taken from an attribute ``targets`` or
            ``labels``, else every item is read once.
        classes: the names of the classes; else an attribute ``classes`` of train, or their numbers.
        image_size: side of the square images; if left out, all have to have the size of the first.

    Images in grey have one channel, if the first ones of both are; else there are three.

    Raises:
        DataError: an item that is none of these, or a label without a class.
    """
    labels = {name: _labels(name, items) for name, items in (("train", train), ("test", test))}
    first = [_image(items, 0, f"{name}, image 0") for name, items in (("train", train), ("test", test))]
    channels = 1 if all(image.mode in ("1", "L") for image in first) else 3
    width, height = first[0].size
    shape = (channels, image_size or height, image_size or width)
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size: expected at least 1 pixel, got {image_size}")
    names = classes or getattr(train, "classes", None) or range(int(labels["train"].max()) + 1)
    return Dataset(
        OWN,
        OwnSplit("train", train, labels["train"], shape, image_size is not None),
        OwnSplit("test", test, labels["test"], shape, image_size is not None),
        tuple(map(str, names)),
    )


def _labels(name: str, items: Any) -> Tensor:
    """Return the labels of all images, int64 [N]."""
    try:
        count = len(items)
        kept = (getattr(items, place, None) for place in LABELS)
        known = next((labels for labels in kept if labels is not None and len(labels) == count), None)
        found = [int(label) for label in (known if known is not None else (items[index][1] for index in range(count)))]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(
            f"{name}: expected a data set with a length that gives (image, label) by index, got "
            f"{type(items).__name__}: {type(error).__name__}: {error}"
        ) from error
    return torch.tensor(found, dtype=torch.int64)


def _image(items: Any, index: int, where: str) -> Image.Image:
    """Return an image of a data set for Pillow."""
    try:
        image = items[index][0]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{where}: cannot be read: {type(error).__name__}: {error}") from error
    if isinstance(image, Image.Image):
        return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    if isinstance(image, Tensor):
        image = image.movedim(0, -1).numpy() if image.dim() == 3 else image.numpy()
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] == 3)):
        raise DataError(
            f"{where}: expected a Pillow image, or uint8 of one or three channels, got {pixels.dtype} "
            f"{list(pixels.shape)}"
        )
    return Image.fromarray(pixels)
