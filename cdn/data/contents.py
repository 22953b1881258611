"""The fingerprint of a data set, read without its images: its classes, and what each of them holds."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdn.data.dataset import Dataset
from cdn.data.split import ImageSplit
from cdn.errors import DataError

# What JSON can hold: classes, shape of the images, and of each split the number of images, their labels in order, and
# what every class holds.
Fingerprint = dict[str, Any]
SPLITS = ("train", "test")
SHOWN = 3


def fingerprint(dataset: Dataset) -> Fingerprint:
    """Return the fingerprint of a data set, which is equal for the same images in another place.

    Images in files go by their names and sizes, and the first of each class by all that it holds; images in memory go
    by their labels and order. What is not seen is another image in the place of one with the same label and, in a file,
    of the same name and size.

    Raises:
        DataError: a file is gone.
    """
    splits = {name: _of_split(getattr(dataset, name), dataset.classes) for name in SPLITS}
    return dict(classes=list(dataset.classes), shape=list(dataset.shape), **splits)


def differences(before: Mapping[str, Any], now: Fingerprint) -> list[str]:
    """Return what differs between two fingerprints, in a few phrases; what the first lacks agrees."""
    if before.get("classes", now["classes"]) != now["classes"]:
        new, old = _few(now["classes"], before["classes"]), _few(before["classes"], now["classes"])
        return [f"classes {new} where there were {old}"]
    found = []
    if before.get("shape", now["shape"]) != now["shape"]:
        found.append(f"images of shape {now['shape']} where it was {before['shape']}")
    for split in SPLITS:
        found += _split_differences(split, before.get(split, {}), now[split])
    return found if len(found) <= SHOWN else [*found[:SHOWN], f"and {len(found) - SHOWN} more"]


def _split_differences(split: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    for name, holds in now["holds"].items():
        held = before.get("holds", {}).get(name, holds)
        if held[0] != holds[0]:
            found.append(f"{holds[0]} images of {name!r} in {split} where there were {held[0]}")
        elif held != holds:
            found.append(f"{name!r} in {split} has other files")
    if not found and before.get("images", now["images"]) != now["images"]:
        found.append(f"{now['images']} images in {split} where there were {before['images']}")
    if not found and before.get("labels", now["labels"]) != now["labels"]:
        found.append(f"other labels, or another order, in {split}")
    return found


def _of_split(split: ImageSplit, classes: Sequence[str]) -> dict[str, Any]:
    counts = split.labels.bincount(minlength=len(classes)).tolist()
    holds: dict[str, list[Any]] = {name: [count] for name, count in zip(classes, counts)}
    if split.paths:
        files: dict[str, list[Path]] = {name: [] for name in classes}
        for path, label in zip(split.paths, split.labels.tolist()):
            files[classes[label]].append(path)
        for name, paths in files.items():
            holds[name].append(_of_files(sorted(paths)))
    return dict(images=len(split), labels=_short(split.labels.numpy().tobytes()), holds=holds)


def _of_files(paths: Sequence[Path]) -> str:
    """Return a hash of the names and sizes of files and of the content of the first, as some formats have one size."""
    try:
        lines = [b"%s %d" % (os.fsencode(path.name), path.stat().st_size) for path in paths]
        first = [path.read_bytes() for path in paths[:1]]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return _short(b"\0".join([*lines, *first]))


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _few(names: Sequence[str], others: Sequence[str]) -> str:
    """Return those of the names that the others lack, or else all, at most a few of them."""
    shown = [name for name in names if name not in others] or list(names)
    return ", ".join(map(repr, shown[:SHOWN])) + (", ..." if len(shown) > SHOWN else "")
