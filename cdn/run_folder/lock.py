"""The lock of a run folder: one training at a time, released by the end of its process."""

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cdn.errors import CDNError
from cdn.run_folder.names import LOCK

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


# What this process holds, as (process, device, file): the system would let a process lock a file twice, and forget both
# locks at the first close. The number of the process is there for children, which find here what their parent holds.
_held: set[tuple[int, int, int]] = set()
_guard = threading.Lock()


@contextlib.contextmanager
def locked(run: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a run folder for one training alone.

    This is a record lock of POSIX: the system releases it when its process ends, after a kill too, and forked children
    do not inherit it. Where there is none, on Windows and in some network folders, only this process is held off.

    Args:
        run: the folder, which has to exist. A file ``.lock`` is left in it.
        patience: seconds to wait for another process to release it.

    Raises:
        CDNError: another training holds it, or the folder cannot be written.
    """
    path = run / LOCK
    with _guard:
        if path.exists() and _key(os.stat(path)) in _held:
            raise _taken(run, f"process {os.getpid()}, this one")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise CDNError(f"{run} cannot be written: {error.strerror}") from None
        key = _key(os.fstat(descriptor))
        try:
            deadline = time.monotonic() + patience
            while not (found := _lock(descriptor)) and time.monotonic() < deadline:
                time.sleep(0.1)
            if not found:
                raise _taken(run, os.read(descriptor, 200).decode(errors="replace"))
            _held.add(key)
        except BaseException:
            os.close(descriptor)
            raise
    try:
        with contextlib.suppress(OSError):  # the name of the holder only serves an error message
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        with _guard:
            _held.discard(key)
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file; False if another process has, True too where files cannot be locked."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def _key(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino


def _taken(run: Path, holder: str) -> CDNError:
    return CDNError(f"{run} is being trained by {holder or 'another process'}: let it finish, or stop it first")
