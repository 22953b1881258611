"""What every command shares: argument types, devices, and errors a person can read."""

import argparse
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from cdn.errors import CDNError
from cdn_kernels.console import run_steadily
from cdn_kernels.noise import HIGHEST_LEVEL, SEEDS

PRECISIONS = ("float32", "bf16")

Number = TypeVar("Number", int, float)


def run_command(main: Callable[[], int | None], *, to_the_end: bool = True) -> NoReturn:
    """Run a command and exit: status 0 if it succeeds, 1 with one line on stderr if it cannot, 130 on Ctrl-C.

    Args:
        main: the command.
        to_the_end: whether it has results beside what it prints, and goes on when no one reads that any more.

    Warnings are shown as one line each, without the place in the code, which says nothing to who gave the command.
    """
    warnings.formatwarning = lambda message, *_, **__: f"note: {' '.join(str(message).split())}\n"
    sys.exit(run_steadily(lambda: _status(main), to_the_end=to_the_end))


def _status(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except CDNError as error:
        return _failed(error)
    except OSError as error:
        return _failed(f"{error.filename or 'file'}: {error.strerror}" if error.strerror else error)
    except (MemoryError, RuntimeError) as error:
        shortage = _shortage(error)
        if shortage is None:
            raise
        return _failed(f"out of memory ({shortage}): try a smaller batch or image")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _failed(message: object) -> int:
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


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    return _number(text, int, lambda v: v >= 1, "a whole number of at least 1")


def whole_number(text: str) -> int:
    """Parse an integer of at least 0."""
    return _number(text, int, lambda v: v >= 0, "a whole number of at least 0")


def seed_number(text: str) -> int:
    """Parse what :class:`cdn.Noise` takes as a seed."""
    return _number(text, int, lambda v: 0 <= v < SEEDS, "a whole number of at least 0 and below 2^64")


def noise_level(text: str) -> float:
    """Parse a noise level in the units of images in [0, 1], as 0.1 or 25/255."""
    level = _number(text, _ratio, lambda v: 0 < v < float("inf"), "a number above 0, such as 0.1 or 25/255")
    if level > HIGHEST_LEVEL:
        raise argparse.ArgumentTypeError(f"expected the noise level of images in [0, 1], got {text!r}; {grey(level)}")
    return level


def grey(level: float) -> str:
    """Say how a noise level that looks like grey levels is written in the units of images in [0, 1]."""
    return f"{level:g} grey levels are {level:g}/255"


def _ratio(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return _number(text, float, lambda v: 0 < v < float("inf"), "a number above 0")


def nonnegative_float(text: str) -> float:
    """Parse a finite number of at least 0."""
    return _number(text, float, lambda v: 0 <= v < float("inf"), "a number of at least 0")


def fraction(text: str) -> float:
    """Parse a number in [0, 1]."""
    return _number(text, float, lambda v: 0 <= v <= 1, "a number in [0, 1]")


def probability(text: str) -> float:
    """Parse a number strictly between 0 and 1."""
    return _number(text, float, lambda v: 0 < v < 1, "a number between 0 and 1")


def _number(text: str, kind: Callable[[str], Number], valid: Callable[[Number], bool], expected: str) -> Number:
    try:
        value: Number | None = kind(text)
    except (ValueError, ZeroDivisionError):
        value = None
    if value is None or not valid(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def pick_device(name: str) -> torch.device:
    """Return the torch device of "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        CDNError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CDNError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def add_runtime_arguments(parser: argparse.ArgumentParser, precision: str = "float32") -> None:
    """Add ``--device`` and ``--precision``."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=precision,
        help="bf16: convolutions in bfloat16, everything delicate in float32 (default: %(default)s)",
    )
