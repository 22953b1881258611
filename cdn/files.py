"""Files, and how they are written so that a crash cannot tear them; JSON without nan."""

import contextlib
import glob
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdn.errors import CDNError

# How names of files that are being written end, and for how many seconds a writer may fall silent.
TEMPORARY, STALE = ".tmp", 3600.0

# What JSON can hold, by name: numbers, strings, lists and dicts of these.
Results = dict[str, Any]


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Replace a file by bytes so that a reader, or a crash at any moment, finds the old content or the new.

    What a writer of the same file left that was killed long ago goes with it.

    Raises:
        CDNError: the disk is full or the folder cannot be written; the old content is intact.
    """
    path = Path(path)
    with _replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sweep(path.parent, path.name)


def keep_as(path: str | Path, other: str | Path) -> None:
    """Give a file a second name, which it keeps when its own is replaced: a link, or a copy where there are no links.

    Raises:
        CDNError: it cannot be written; both names stand for what they stood for.
    """
    with _replacing(Path(other)) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def append(path: str | Path, data: bytes) -> int:
    """Add bytes to the end of a file, all of them or none, and return its size.

    Raises:
        CDNError: the disk is full or the file cannot be written; what was there before is intact.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(size)
                raise
            return size + len(data)
    except OSError as error:
        raise CDNError(f"could not write {path}: {error.strerror}; what was there before is intact") from None


def make_folder(path: Path) -> None:
    """Make the folder that a command writes into, and see that files can be written there.

    Raises:
        CDNError: it cannot be made, or not be written into.
    """
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CDNError(f"--out: {path} cannot be made a folder: {error.strerror}") from None
    try:
        _try_writing(path, path)
    except CDNError:
        if new:
            path.rmdir()
        raise


def require_writable(path: Path) -> None:
    """Raise CDNError, before any work is done, where a file cannot be written."""
    if path.is_dir():
        raise CDNError(f"{path}: expected a file to write, got a folder")
    if not path.absolute().parent.is_dir():
        raise CDNError(f"{path}: its folder does not exist")
    _try_writing(path.parent, path)


def sweep(folder: Path, *names: str, age: float = STALE) -> None:
    """Remove what killed writers left of the files of a folder.

    Args:
        folder: the folder.
        names: of the files that they were to become.
        age: seconds since the last byte; 0 where it is known that nobody else writes.
    """
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.*{TEMPORARY}"):
            with contextlib.suppress(OSError):
                if not age or time.time() - path.stat().st_mtime >= age:
                    path.unlink()


def _try_writing(folder: Path, named: Path) -> None:
    """Raise CDNError, which names a path, where files of a block cannot be written into a folder."""
    probe = folder / f".probe.{os.getpid()}{TEMPORARY}"
    try:
        probe.write_bytes(bytes(4096))
    except OSError as error:
        raise CDNError(f"{named} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield where to write what is to take the place of a file, or of nothing."""
    # Root could put a file in the place of /dev/null.
    if path.exists() and not path.is_file():
        raise CDNError(f"{path}: expected a file to write, got a {'folder' if path.is_dir() else 'device or pipe'}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise CDNError(f"could not write {path}: {error.strerror}; what was there before is intact") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    # The new name itself has to survive a power cut, where the system can promise that of a folder: not all can.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def json_text(value: Any, **options: Any) -> str:
    """Return strict JSON of nested dicts and lists, with null for numbers that are not finite.

    Args:
        value: what JSON can hold.
        options: for :func:`json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
