"""Photographs in folders: DIR/train/CLASS/* and DIR/val/CLASS/* (or DIR/test), decoded when asked for."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from cdn.data.decoded import DECODERS, LARGEST_UNASKED, SAY_WHICH, DecodedSplit, enough, fitted
from cdn.data.parts import Part
from cdn.errors import DataError
from cdn.images.decoder import decode, opened
from cdn.images.listing import Listing, holds_images, list_folder, say_skipped

LOOKED_AT = 1024  # files at a time


class FolderSplit(DecodedSplit):
    """Decode image files to squares.

    Args:
        paths: the image files.
        labels: int64 [N].
        image_size: side S of the square images, shape (3, S, S).
    """

    def __init__(self, paths: list[Path], labels: Tensor, image_size: int) -> None:
        super().__init__(labels, (3, image_size, image_size))
        self.paths = paths

    def _decode_one(self, index: int, part: Part | None) -> Tensor:
        path = self.paths[index]
        return fitted(decode(path, at_least=enough(self.shape[1], part)).image, self.shape, part, path)


def load_imagefolder(data_dir: Path, image_size: int | None = None) -> tuple[FolderSplit, FolderSplit, tuple[str, ...]]:
    """List the images of `data_dir`/train and of `data_dir`/val or, if there is no val, `data_dir`/test.

    What is no image, such as Thumbs.db and folders without images, is skipped, and a warning says how much.

    Args:
        data_dir: the folder; its classes are the sorted names of the folders of images in train.
        image_size: side of the square images. If left out, the shorter side that all images have, and a warning says
            which.

    Raises:
        DataError: a missing split, a class that train lacks, images that lie outside the folders of classes or deeper,
            or images of different or large sizes and no `image_size`.
    """
    train_dir = data_dir / "train"
    if not train_dir.is_dir():
        raise DataError(f"{train_dir}: expected a folder with one folder of images per class, found none")
    test_dir = next((data_dir / name for name in ("val", "test") if (data_dir / name).is_dir()), None)
    if test_dir is None:
        raise DataError(f"{data_dir}: expected a folder val or test beside train, found neither")
    skipped = Listing()
    train, test = (_list_classes(split_dir, skipped) for split_dir in (train_dir, test_dir))
    unknown = next((name for name in test if name not in train), None)
    if unknown is not None:
        raise DataError(f"{test_dir / unknown}: expected only the classes of train, got the unknown {unknown!r}")
    say_skipped(data_dir, skipped.strays, skipped.folders)
    label_of = {name: label for label, name in enumerate(train)}
    listed = []
    for images in (train, test):
        paths = [path for of_class in images.values() for path in of_class]
        listed.append((paths, torch.tensor([label_of[name] for name in images for _ in images[name]])))
    size = image_size or _common_side(data_dir, [path for paths, _ in listed for path in paths])
    train_split, test_split = (FolderSplit(paths, labels, size) for paths, labels in listed)
    return train_split, test_split, tuple(train)


def _common_side(data_dir: Path, paths: list[Path]) -> int:
    """Return the shorter side that all images have, and warn that it is taken; refuse where there is none, or much."""
    side = _shorter_side(paths[0])
    if side > LARGEST_UNASKED:
        raise DataError(
            f"{paths[0]}: its shorter side has {side} pixels: sizes above {LARGEST_UNASKED} are not taken unasked; "
            f"{SAY_WHICH}"
        )
    with ThreadPoolExecutor(DECODERS) as pool:
        for start in range(0, len(paths), LOOKED_AT):  # or all would be opened where the second decides
            part = paths[start : start + LOOKED_AT]
            for path, other in zip(part, pool.map(_shorter_side, part)):
                if other != side:
                    raise DataError(
                        f"{path}: its shorter side has {other} pixels, that of {paths[0]} {side}: {SAY_WHICH}"
                    )
    warnings.warn(
        f"{data_dir}: images are taken as squares of {side}x{side} pixels, as the shorter side of each has {side}; "
        "another size is chosen with image_size, or --image-size",
        stacklevel=3,
    )
    return side


def _shorter_side(path: Path) -> int:
    with opened(path) as image:
        return min(image.size)


def _list_classes(split_dir: Path, skipped: Listing) -> dict[str, list[Path]]:
    """Return the images of a split by the names of their classes, both in sorted order; what is no image is skipped."""
    split = list_folder(split_dir)
    if split.images:
        raise DataError(f"{split.images[0]}: expected every image in the folder of a class")
    skipped.strays += split.strays
    images = {}
    for folder in split.folders:
        inside = list_folder(folder)
        for nested in inside.folders:
            if holds_images(nested):
                raise DataError(f"{nested}: expected no folders of images in the folder of a class")
        if inside.images:
            images[folder.name] = inside.images
            skipped.strays += inside.strays
            skipped.folders += inside.folders
        else:
            skipped.folders.append(folder)
    if not images:
        raise DataError(f"{split_dir}: expected one folder of images per class, found nothing")
    return images
