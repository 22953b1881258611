"""Find the OpenMP runtime whose threads the CPU library borrows: torch's own.

The library links with none, so that no process gets two pools of threads: torch's wheels bring a runtime of their own
(torch/lib/libgomp.so.1 on Linux, libomp.dylib on macOS), other builds use the system's, or one that was preloaded.
Whichever it is, it has the functions of GNU's runtime, and they are looked up where torch's own calls are.
"""

import ctypes
import sys
from collections.abc import Iterator

import torch

FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
# For builds of torch without OpenMP.
SYSTEM = ("libomp.dylib",) if sys.platform == "darwin" else ("libgomp.so.1", "libomp.so.5")


def find() -> tuple[str, list[ctypes.c_void_p]] | None:
    """Return (where, functions): words for people, and the addresses of FUNCTIONS; None if there is no runtime."""
    for where, name in _places():
        try:
            library = ctypes.CDLL(name)
            return where, [ctypes.cast(getattr(library, function), ctypes.c_void_p) for function in FUNCTIONS]
        except (OSError, AttributeError):
            continue
    return None


def _places() -> Iterator[tuple[str, str | None]]:
    """Yield where to look, as (words, name of a library): as the dynamic linker does for torch, then the system's."""
    yield "torch's OpenMP", None  # what all libraries see, such as a preloaded runtime
    extension = getattr(getattr(torch, "_C", None), "__file__", None)
    if extension:
        yield "torch's OpenMP", extension  # what torch depends on, under any name
    for name in SYSTEM:
        yield f"the system's {name}", name
