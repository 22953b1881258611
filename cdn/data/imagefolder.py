"""Photographs in folders: DIR/train/CLASS/* and DIR/val/CLASS/* (or DIR/test), decoded when asked for."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from cdn.data.decoder import SUFFIXES, as_tensor, central_square, decode, opened
from cdn.data.split import ImageSplit
from cdn.errors import DataError

CACHE_BYTES = 2**30
DECODERS = min(8, os.cpu_count() or 1)


class FolderSplit(ImageSplit):
    """Decode images on demand, and keep them all if the whole split takes at most 1 GiB.

    Args:
        paths: the image files.
        labels: int64 [N].
        image_size: side S of the square images, shape (3, S, S).
    """

    def __init__(self, paths: list[Path], labels: Tensor, image_size: int) -> None:
        super().__init__(labels, (3, image_size, image_size))
        self.paths = paths
        self._cache: Tensor | None = None  # uint8 [N, 3, S, S]
        self._cached: Tensor | None = None  # bool [N]
        if len(paths) * 3 * image_size**2 <= CACHE_BYTES:
            self._cache = torch.empty((len(paths), *self.shape), dtype=torch.uint8)
            self._cached = torch.zeros(len(paths), dtype=torch.bool)

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
        with ThreadPoolExecutor(DECODERS) as pool:
            paths = (self.paths[index] for index in indices.tolist())
            squares = pool.map(lambda path: decode_square(path, self.shape[1]), paths)
            for image, square in zip(images, squares):
                image.copy_(square)
        return images


def load_imagefolder(data_dir: Path, image_size: int | None = None) -> tuple[FolderSplit, FolderSplit, tuple[str, ...]]:
    """List the images of `data_dir`/train and of `data_dir`/val or, if there is no val, `data_dir`/test.

    Args:
        data_dir: the folder; its classes are the sorted names of the folders in train.
        image_size: side of the square images; the shorter side of the first image if left out.

    Raises:
        DataError: a missing split, a class without images or unknown to train, or anything that is no image.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size: expected at least 1 pixel, got {image_size}")
    train_dir = data_dir / "train"
    if not train_dir.is_dir():
        raise DataError(f"{train_dir}: expected a folder with one folder of images per class, found none")
    test_dir = next((data_dir / name for name in ("val", "test") if (data_dir / name).is_dir()), None)
    if test_dir is None:
        raise DataError(f"{data_dir}: expected a folder val or test beside train, found neither")
    classes = tuple(folder.name for folder in _class_folders(train_dir))
    train_paths, train_labels = _list_images(train_dir, classes)
    test_paths, test_labels = _list_images(test_dir, classes)
    size = image_size
    if size is None:
        with opened(train_paths[0]) as image:
            size = min(image.size)
    return FolderSplit(train_paths, train_labels, size), FolderSplit(test_paths, test_labels, size), classes


def decode_square(path: Path, size: int) -> Tensor:
    """Decode an image to RGB, resize its shorter side to `size` and cut out the central square.

    Returns:
        uint8 [3, size, size].

    Raises:
        DataError: an image that :func:`decode` refuses.
    """
    return as_tensor(central_square(decode(path).image.convert("RGB"), size), 3)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    # Hidden files, such as those a file manager leaves behind, are nobody's data.
    # scandir knows files from folders without a system call for each of what may be a million images.
    try:
        with os.scandir(folder) as entries:
            visible = (entry for entry in entries if not entry.name.startswith("."))
            return sorted(visible, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: expected a readable folder, got: {error}") from error


def _class_folders(split_dir: Path) -> list[Path]:
    folders = _entries(split_dir)
    if not folders:
        raise DataError(f"{split_dir}: expected one folder of images per class, found nothing")
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder.path}: expected nothing but class folders in {split_dir.name}")
    return [Path(folder) for folder in folders]


def _list_images(split_dir: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Return every image of a split, class by class in sorted order, and its label."""
    label_of = {name: label for label, name in enumerate(classes)}
    paths, labels = [], []
    for folder in _class_folders(split_dir):
        if folder.name not in label_of:
            raise DataError(f"{folder}: expected only the classes of train, got the unknown {folder.name!r}")
        files = _entries(folder)
        if not files:
            raise DataError(f"{folder}: expected at least one image, found an empty folder")
        for file in files:
            if not file.name.lower().endswith(SUFFIXES) or not file.is_file():
                raise DataError(f"{file.path}: expected an image file ({', '.join(SUFFIXES)})")
        paths += [Path(file) for file in files]
        labels += [label_of[folder.name]] * len(files)
    return paths, torch.tensor(labels)
