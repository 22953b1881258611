"""CIFAR-10 as its authors distribute it, the binary records or the Python pickles, or as strips of WebP."""

from pathlib import Path

import numpy as np
import torch

from cdn.data.cifar10_download import FOLDER, URL, download_cifar10, unpacking
from cdn.data.cifar10_pickle import read_pickled_batch, read_pickled_names
from cdn.data.cifar10_strips import NAMES, check_labels, has_strips, read_integers, read_strips
from cdn.data.split import MemorySplit
from cdn.errors import DataError

__all__ = ["download_cifar10", "load_cifar10"]

CLASSES = len(NAMES)
PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS
TRAIN_FILES = 5
STRIPS = ".webp"


def load_cifar10(data_dir: Path, download: bool = False) -> tuple[MemorySplit, MemorySplit, tuple[str, ...]]:
    """Return the train and test images, uint8 [N, 3, 32, 32], and the ten class names.

    Read are `data_dir` itself, or cifar-10-batches-bin or cifar-10-batches-py in it: data_batch_1 up to
    data_batch_5 without a gap, test_batch, and the names in batches.meta. A batch may hold any number of
    images above 0. Failing these, strips in `data_dir` itself (`cifar10_strips`). A train_inexact.npy or
    test_inexact.npy beside the files or one folder up holds the indices of images that are no exact originals;
    an index past the end is one that a shortened set does not reach.

    Raises:
        DataError: a file that is missing, cut short, of the wrong size or otherwise corrupt.
    """
    found = _locate(data_dir)
    if found is None and download:
        download_cifar10(data_dir)
        found = _locate(data_dir)
    if found is None:
        raise DataError(
            f"{data_dir}: expected CIFAR-10 (such as {FOLDER}/test_batch.bin), found none: "
            f"fetch it with --download, or put {URL} there "
            f"and run: {unpacking(data_dir)}"
        )
    folder, suffix = found
    if suffix == STRIPS:
        train, test = (_split(folder, split, *read_strips(folder, split)) for split in ("train", "test"))
        return train, test, NAMES
    names = _read_names(folder, suffix)
    train = _split(folder, "train", *_read_batches(_train_files(folder, suffix)))
    test = _split(folder, "test", *_read_batches([folder / f"test_batch{suffix}"]))
    return train, test, names


def _locate(data_dir: Path) -> tuple[Path, str] | None:
    """Return the folder of the files and their suffix: ".bin", "" for pickles, or STRIPS."""
    for folder in (data_dir, data_dir / FOLDER, data_dir / "cifar-10-batches-py"):
        for suffix in (".bin", ""):
            if any((folder / f"{stem}{suffix}").is_file() for stem in ("data_batch_1", "test_batch")):
                return folder, suffix
    return (data_dir, STRIPS) if has_strips(data_dir) else None


def _train_files(folder: Path, suffix: str) -> list[Path]:
    """Return the batches that are there, at least the first, refusing a gap that would shift every index."""
    files = [folder / f"data_batch_{number}{suffix}" for number in range(1, TRAIN_FILES + 1)]
    count = max((number for number, file in enumerate(files, 1) if file.is_file()), default=1)
    return files[:count]


def _split(folder: Path, split: str, images: np.ndarray, labels: np.ndarray) -> MemorySplit:
    pixels = torch.from_numpy(images).reshape(-1, 3, 32, 32)
    return MemorySplit(pixels, torch.from_numpy(labels).to(torch.int64), _read_exact(folder, split, len(labels)))


def _read_batches(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(_read_batch(file) for file in files))
    return np.concatenate(images), np.concatenate(labels)


def _read_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return planar RGB pixels, uint8 [N, 3072], and labels, [N], of one batch file."""
    if not file.is_file():
        raise DataError(f"{file}: expected a CIFAR-10 batch, found no such file")
    images, labels = _read_records(file) if file.suffix == ".bin" else read_pickled_batch(file)
    check_labels(file, labels)
    return images, labels


def _read_records(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        raw = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{file}: expected a readable file, got: {error}") from error
    if raw.size == 0 or raw.size % RECORD:
        raise DataError(f"{file}: expected whole records of {RECORD} bytes, got {raw.size} bytes")
    records = raw.reshape(-1, RECORD)
    return records[:, 1:], records[:, 0]


def _read_names(folder: Path, suffix: str) -> tuple[str, ...]:
    file = folder / ("batches.meta.txt" if suffix else "batches.meta")
    if not file.is_file():
        raise DataError(f"{file}: expected the names of the classes, found no such file")
    try:
        names = tuple(file.read_text().split()) if suffix else read_pickled_names(file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected the names of the classes, got: {error}") from error
    if len(names) != CLASSES:
        raise DataError(f"{file}: expected {CLASSES} class names, got {len(names)}")
    return names


def _read_exact(folder: Path, split: str, count: int) -> torch.Tensor:
    """Return bool [count], False for every image that the split's list of inexact ones names."""
    exact = torch.ones(count, dtype=torch.bool)
    places = (folder, folder.resolve().parent)
    file = next((file for place in places if (file := place / f"{split}_inexact.npy").is_file()), None)
    if file is None:
        return exact
    inexact = read_integers(file, "a NumPy array")
    if inexact.size and inexact.min() < 0:
        raise DataError(f"{file}: expected image indices of at least 0, got {inexact.min()}")
    exact[torch.from_numpy(inexact[inexact < count].astype(np.int64))] = False
    return exact
