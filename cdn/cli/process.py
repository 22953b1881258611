"""How a command runs: its exit status, errors that a person can read, and the log of a command that another starts."""

import contextlib
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from cdn.errors import CDNError
from cdn.processes import first_to_fail, started
from cdn_kernels.console import run_steadily


def run_command(main: Callable[[], int | None], *, to_the_end: bool = True, divided: bool = False) -> NoReturn:
    """Run a command and exit: status 0 if it succeeds, 1 with one line on stderr if it cannot, 130 on Ctrl-C.

    Args:
        main: the command.
        to_the_end: whether it has results beside what it prints, and goes on when no one reads that any more.
        divided: whether processes that torchrun starts divide the work; if not, more than one of them are refused.

    Warnings are shown as one line each, without the place in the code, which says nothing to who gave the command. Of
    several processes the first prints and warns; whichever fails first says why, and the others end without a word.
    """
    sys.exit(run_steadily(lambda: _status(main, divided), to_the_end=to_the_end))


def _status(main: Callable[[], int | None], divided: bool) -> int:
    try:
        processes = started()
        if processes.count > 1 and not divided:
            raise CDNError(
                f"this command runs in one process, and this is one of {processes.count} (WORLD_SIZE): start it once, "
                "without torchrun"
            )
        with _voice(processes.first):
            return main() or 0
    except CDNError as error:
        return _failed(error)
    except OSError as error:
        return _failed(f"{error.filename or 'file'}: {error.strerror}" if error.strerror else error)
    except KeyboardInterrupt:
        if first_to_fail():
            print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        shortage = _shortage(error)
        if shortage is not None:
            return _failed(f"out of memory ({shortage}): try a smaller batch or image")
        if first_to_fail():
            raise
        return 1


@contextlib.contextmanager
def _voice(heard: bool) -> Iterator[None]:
    """Show warnings as lines; or neither these nor what is printed."""
    warnings.formatwarning = lambda message, *_, **__: f"note: {' '.join(str(message).split())}\n" if heard else ""
    with contextlib.ExitStack() as stack:
        if not heard:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield


def _failed(message: object) -> int:
    if first_to_fail():
        print("error: " + " ".join(str(message).splitlines()), file=sys.stderr)
    return 1


def _shortage(error: Exception) -> str | None:
    """Return what an error says of memory that ran out, or None if it is about something else."""
    line = str(error).partition("\n")[0]
    # torch raises plain RuntimeErrors on CPUs, and where a GPU's driver, not its own allocator, has no more.
    found = re.search("DefaultCPUAllocator: (.*)|(CUDA error: out of memory)", line)
    if found:
        return found[1] or found[2]
    return line or "no more is known" if isinstance(error, (MemoryError, torch.OutOfMemoryError)) else None


def run_logged(command: Sequence[str], log: Path, prefix: str = "", **options: Any) -> int:
    """Run another command, showing what it prints and writing that to a file too; return its exit status.

    Args:
        command: its words.
        log: path of the file.
        prefix: what to show before every line.
        options: for subprocess.Popen, such as cwd and env.

    Raises:
        CDNError: the file cannot be written; where that comes to light later, the command has run to its end.
    """
    lost = None
    try:
        file = log.open("wb", buffering=0)
    except OSError as error:
        raise CDNError(f"could not write {log}: {error.strerror}") from None
    with (
        file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="backslashreplace", **options
        ) as process,
    ):
        assert process.stdout is not None  # it is a pipe
        for line in process.stdout:
            print(f"{prefix}{line}", end="", flush=True)
            try:
                file.write(line.encode(errors="backslashreplace"))
            except OSError as error:
                lost = error
    if lost is not None:
        raise CDNError(f"could not write {log}: {lost.strerror}")
    return process.returncode
