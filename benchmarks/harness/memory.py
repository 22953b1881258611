"""The peak memory of a call."""

import ctypes
import gc
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(function, device="cpu"):
    """Call a function and return how much memory it took at its peak beyond what was held before.

    On a CPU this is the resident memory of the process, which only Linux lets one reset and read: None elsewhere. What
    only replays a recording took its memory before, and says how much: its ``recorded_bytes``.
    """
    gc.collect()
    recorded = getattr(function, "recorded_bytes", None)
    if recorded is not None:
        return recorded
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        function()
        return None
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that was kept would be used again, and not be seen
    _CLEAR.write_text("5")
    before = _resident("VmRSS")
    function()
    return max(0, _resident("VmHWM") - before)


def _resident(field):
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])
