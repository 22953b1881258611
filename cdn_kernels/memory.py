"""Reuse memory between training steps."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_USERS_OWN = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_pages() -> bool:
    """Let this process keep the memory that it frees, instead of returning it to the kernel.

    On Linux, glibc returns buffers of some megabytes, such as a layer's activations, at every free, and the kernel
    hands out zeroed pages at every allocation: tens of thousands of page faults a step. Call this once, before the
    first step. Limitation: the process holds its peak of memory until it ends, and the peak may grow (the fused step's
    by nothing at batch 64 and by up to a third at 256), because what is free is not always of the right size.

    Returns:
        True if that is so from now on. False where the C library is not glibc, and if the environment sets one of
        glibc's own options (``MALLOC_TRIM_THRESHOLD_`` and the like): the user's word counts.

    Source: mallopt(3).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _USERS_OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    # No buffer of its own mapping, and nothing returned from the top of the heap.
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
