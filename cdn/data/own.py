"""Data sets of your own in Python: whatever has a length and gives (image, label) by index."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdn.data.dataset import OWN, Dataset
from cdn.data.decoded import ItemSplit, check_size
from cdn.errors import DataError

# Attributes under which data sets keep the labels of all images, as those of torchvision do.
LABELS = ("targets", "labels")


class OwnSplit(ItemSplit):
    """Read the images of a map-style data set, whose items are (image, label)."""

    def _image(self, index: int, where: str, at_least: int | Callable[[int, int], int] | None) -> Image.Image:
        return _image(self.items, index, where)


def own_dataset(train: Any, test: Any, classes: Sequence[str] | None = None, image_size: int | None = None) -> Dataset:
    """Return a data set of two map-style ones, such as those of torchvision, for ``cdn.training.loop.train``.

    Args:
        train, test: have a length, and give (image, label) by index: a Pillow image of mode L or RGB, or uint8 [H, W]
            or [H, W, C], as a NumPy array, or [C, H, W] as a tensor; and a number from 0 on. They change nothing at
            random: the training crops and mirrors by numbers of its own. Labels of all images are taken from an
            attribute ``targets`` or ``labels``, else every item is read once.
        classes: the names of the classes; else an attribute ``classes`` of train, or their numbers.
        image_size: side of the square images; if left out, all have to have the size of the first.

    Images in grey have one channel, if the first ones of both are; else there are three.

    Raises:
        DataError: an item that is none of these, or a label without a class.
    """
    check_size(image_size)
    given = dict(train=train, test=test)
    labels = {name: _labels(name, items) for name, items in given.items()}
    first = {name: _image(items, 0, f"{name}, image 0") for name, items in given.items()}
    channels = 1 if all(image.mode == "L" for image in first.values()) else 3
    width, height = first["train"].size
    shape = (channels, image_size or height, image_size or width)
    names = classes or getattr(train, "classes", None) or range(int(labels["train"].max()) + 1)
    split = lambda name: OwnSplit(name, given[name], labels[name], shape, image_size is not None)
    return Dataset(OWN, split("train"), split("test"), tuple(map(str, names)))


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
        if image.mode not in ("1", "L", "RGB"):  # to convert others may lose transparency, or bits
            raise DataError(f"{where}: expected a Pillow image of mode L or RGB, got {image.mode}; convert it first")
        return image.convert("L") if image.mode == "1" else image
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
