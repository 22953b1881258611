"""Read CIFAR-10 from strips: lossless WebP images of many pictures one above the other, and labels beside them."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cdn.errors import DataError
from cdn.images.decoder import decode

SIDE = 32
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def has_strips(folder: Path) -> bool:
    """Tell whether a folder holds the first strip of a split."""
    return any((folder / f"{split}_000.webp").is_file() for split in ("train", "test"))


def read_strips(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read split_000.webp, split_001.webp and so on, and split_labels.npy.

    Labels beyond the last image belong to strips that are not there.

    Returns:
        Planar RGB pixels, uint8 [N, 3072], and labels, [N].

    Raises:
        DataError: no strip, a gap, a file that cannot be read or of another shape, or fewer labels than images.
    """
    files = sorted(folder.glob(f"{split}_[0-9][0-9][0-9].webp"))
    expected = [folder / f"{split}_{number:03}.webp" for number in range(max(len(files), 1))]
    if files != expected:
        missing = next(file for file in expected if file not in files)
        raise DataError(f"{missing}: expected a strip of CIFAR-10, found no such file")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        images = np.concatenate(list(pool.map(_read_strip, files)))
    labels = _read_labels(folder / f"{split}_labels.npy")
    if len(labels) < len(images):
        raise DataError(
            f"{folder / f'{split}_labels.npy'}: expected a label for each of {len(images)} images, got {len(labels)}"
        )
    return images, labels[: len(images)]


def _read_strip(file: Path) -> np.ndarray:
    pixels = np.array(decode(file, ("WEBP",)).image.convert("RGB"))
    height, width, _ = pixels.shape
    if width != SIDE or height % SIDE:
        raise DataError(f"{file}: expected images of {SIDE}x{SIDE} pixels one above the other, got {width}x{height}")
    return pixels.reshape(-1, SIDE, SIDE, 3).transpose(0, 3, 1, 2).reshape(-1, 3 * SIDE**2)


def _read_labels(file: Path) -> np.ndarray:
    labels = read_integers(file, "the labels of the strips")
    check_labels(file, labels)
    return labels


def read_integers(file: Path, expected: str) -> np.ndarray:
    """Read a NumPy file of integers, [N]; `expected` is what to call it where there is none."""
    try:
        integers = np.load(file, allow_pickle=False)
    except Exception as error:  # a corrupt header surfaces as almost any exception
        raise DataError(f"{file}: expected {expected}, got {type(error).__name__}: {error}") from error
    if not isinstance(integers, np.ndarray) or integers.ndim != 1 or integers.dtype.kind not in "iu":
        raise DataError(f"{file}: expected a one-dimensional array of integers")
    return integers


def check_labels(file: Path, labels: np.ndarray) -> None:
    """Raise DataError unless all labels of a file name classes."""
    outside = np.flatnonzero((labels < 0) | (labels >= len(NAMES)))
    if len(outside):
        first = outside[0]
        raise DataError(f"{file}: expected labels 0..{len(NAMES) - 1}, got {labels[first]} in image {first}")
