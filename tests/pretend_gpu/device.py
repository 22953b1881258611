"""Compile and load the device of device.cpp, which torch must find when it is imported: before torch, and without it.

The compiled device is kept for later runs, by what it was made of: in pytest's cache, or in the folder that the
environment variable PRETEND_GPU names.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("device.cpp")
CACHE = Path(__file__).parents[2] / ".pytest_cache/d/pretend_gpu"  # that of the cache's mkdir("pretend_gpu")
FLAGS = ["-std=c++20", "-O1", "-shared", "-fPIC"]
COMPILER = os.environ.get("CXX", "g++")


def load():
    """Load the device, compiled unless that was done.

    Raises:
        pytest.UsageError: it cannot be pretended here; the message says why.
    """
    torch = Path(importlib.util.find_spec("torch").origin).parent
    if "torch" in sys.modules:
        raise _refusal("must be loaded before torch, which else knows already that there is no GPU")
    if any((torch / f"lib/libtorch_{name}.so").exists() for name in ("cuda", "hip")):
        raise _refusal("this torch knows real GPUs; one without CUDA takes this device for its own")
    if sys.platform != "linux" or shutil.which(COMPILER) is None:
        raise _refusal("the device is compiled, on Linux, with a C++ compiler")
    for library in (torch / "lib/libc10.so", torch / "lib/libtorch_cpu.so", _compiled(torch)):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _compiled(torch):
    """Return the path of the compiled device for the torch in a folder."""
    words = [
        COMPILER,
        *FLAGS,
        *(f"-I{torch / folder}" for folder in ("include", "include/torch/csrc/api/include")),
        str(SOURCE),
        f"-L{torch / 'lib'}",
        "-lc10",
        "-ltorch_cpu",
    ]
    version = subprocess.run([COMPILER, "--version"], check=True, capture_output=True, text=True).stdout
    made_of = [*words, version, importlib.metadata.version("torch"), SOURCE.read_text()]
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]
    library = Path(os.environ.get("PRETEND_GPU", CACHE)) / f"device-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: other processes may look for it now.
        unfinished = library.with_name(f"{library.stem}.{os.getpid()}.so")
        try:
            subprocess.run([*words, "-o", unfinished], check=True)
            unfinished.replace(library)
        finally:
            unfinished.unlink(missing_ok=True)
    return library


def _refusal(reason):
    return pytest.UsageError(f"the pretended GPU: {reason}")
