"""Read CIFAR-10's Python pickles without letting them run anything."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cdn.errors import DataError

PIXELS = 3 * 32 * 32


class _Dtype:
    """Stand in for numpy.dtype: remember the type's name."""

    def __init__(self, name: bytes | str, *_: object) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Ignore the byte order, which one-byte numbers do not have."""


class _Array:
    """Stand in for numpy.ndarray: take uint8 values from the bytes in the pickle."""

    values: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.name not in ("u1", "uint8"):
            raise ValueError(f"an array of type {dtype.name}, expected uint8")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")


# Stand-ins even for NumPy's own types: the real ndarray lets a pickle lay objects over bytes of its choice.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Know the five globals above and refuse every other before it is imported."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(f"refused the global {module}.{name}, which no CIFAR-10 pickle needs") from None


def read_pickled_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return planar RGB pixels, uint8 [N, 3072], and labels, int64 [N], of a pickled batch.

    Raises:
        DataError: the pickle is corrupt, asks for anything but arrays, or holds no such pixels and labels.
    """
    batch = _read(file)
    images = getattr(batch.get("data"), "values", None)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != PIXELS or not len(images):
        raise DataError(
            f"{file}: expected 'data' to be uint8 [N, {PIXELS}], "
            f"got {'no array' if images is None else list(images.shape)}"
        )
    labels = batch.get("labels")
    # bool is a kind of int, but no label; a label past int64 would not fit the array.
    if not isinstance(labels, list) or not all(type(label) is int and abs(label) < 2**63 for label in labels):
        raise DataError(f"{file}: expected 'labels' to be a list of integers")
    if len(labels) != len(images):
        raise DataError(f"{file}: expected one label per image ({len(images)}), got {len(labels)}")
    return images, np.array(labels, dtype=np.int64)


def read_pickled_names(file: Path) -> tuple[str, ...]:
    """Return the class names of a pickled batches.meta.

    Raises:
        DataError: the pickle is corrupt or holds no list of names.
    """
    names = _read(file).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
        raise DataError(f"{file}: expected 'label_names' to be a list of strings")
    return tuple(str(_text(name)) for name in names)


def _read(file: Path) -> dict[object, object]:
    """Return the dictionary in `file` with its keys as text: Python 2 wrote them as bytes, in protocol 2."""
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    except Exception as error:  # a corrupt pickle surfaces as almost any exception
        raise DataError(f"{file}: expected a CIFAR-10 pickle, got {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a pickled dictionary, got {type(content).__name__}")
    return {_text(key): value for key, value in content.items()}


def _text(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
