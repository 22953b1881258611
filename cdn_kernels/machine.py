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
    """Return the commit of this checkout, "-dirty" if it was changed since; None without git or history."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
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
