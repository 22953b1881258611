"""Load a compiled library with a plain C interface."""

import ctypes
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

Signatures = Mapping[str, Sequence[type]]  # the types of the arguments of each function
# Or None, which Any stands for: no call of a kernel asks again, for no backend is chosen whose library is missing.
Library = ctypes.CDLL | Any


class _Observers(threading.local):
    """Who is shown the calls of this thread."""

    calls: Callable[[Callable[..., int], tuple[Any, ...]], None] | None = None


observers = _Observers()


class Read(int):
    """An integer that was read from memory, and may be another when it is read again.

    Args:
        source: the address of 8 bytes.
    """

    source: int

    def __new__(cls, source: int) -> "Read":
        """Read it."""
        self = super().__new__(cls, ctypes.c_int64.from_address(source).value)
        self.source = source
        return self


def load(
    path: Path, name: str, version: tuple[str, int], signatures: Signatures, words: Iterable[str], advice: str
) -> tuple[Library, str | None]:
    """Load a library, if it is there and was built from the sources that the caller was written for.

    Args:
        path: of the file.
        name: what to call it in a sentence.
        version: the pair of the function that returns the version of its interface, and the one expected.
        signatures: the types of the arguments of each function.
        words: names of the functions that return text.
        advice: what to do if it was not built.

    Returns:
        (library, None), or (None, the reason why there is none).
    """
    if not path.exists():
        return None, f"{name} was not built; {advice}"
    function, expected = version
    try:
        library = ctypes.CDLL(str(path))
        for key, arguments in signatures.items():
            getattr(library, key).argtypes = arguments
        for key in words:
            getattr(library, key).restype = ctypes.c_char_p
        found = getattr(library, function)()
    except (OSError, AttributeError) as error:
        return None, f"{name} could not be loaded: {error}"
    if found != expected:
        return None, f"{name} has interface {found}, expected {expected}; reinstall to rebuild it"
    return library, None


def address(tensor: Tensor | None) -> int | None:
    """Return where the elements of a tensor lie, None for none."""
    return None if tensor is None else tensor.data_ptr()


def integer(value: int | Tensor) -> int:
    """Return an integer, or that which a tensor on the CPU, int64 [], holds."""
    return Read(value.data_ptr()) if isinstance(value, Tensor) else value
