"""Say what was measured on: hardware, versions, threads."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from cdn_kernels import __version__
from cdn_kernels.backends import cpu


def describe(device: str) -> dict[str, str | int | None]:
    """Return what identifies a measurement, ready for JSON.

    Args:
        device: "cpu" or "cuda".
    """
    return dict(
        device=torch.cuda.get_device_name() if device == "cuda" else processor(),
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        system=platform.system(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=torch.version.cuda,
        cdn=__version__,
        capability=cpu.CAPABILITY,
        convolutions=cpu.ENGINE,
        commit=commit(),
    )


@functools.cache
def commit() -> str | None:
    """Return the commit of this checkout, "-dirty" if it was changed since.

    None without git or history, and where the package was installed: a repository around it is of something else.
    """
    return commit_of(Path(__file__))


def commit_of(file: Path) -> str | None:
    """Return the commit of the repository that has a file in the folder in which the file's package lies; else None."""
    root = file.parents[1]
    # That root is the top of its repository, and that it knows the file, is asked first.
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != root.resolve() or not _git(root, "ls-files", "--", str(file.relative_to(root))):
        return None
    return _git(root, "describe", "--always", "--dirty", "--abbrev=12")


def _git(folder: Path, *words: str) -> str | None:
    """Return what git prints in a folder, whatever repository the environment names; None where it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *words],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            cwd=folder,
            env=environment,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
