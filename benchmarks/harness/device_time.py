"""How long a GPU works on a case, however long the host takes to launch it."""

import time

import torch

CYCLES = 2e9  # of a second, at most: no GPU's clock is much faster
LONGEST = 0.02  # seconds to keep the GPU waiting, at most


class DeviceTimer:
    """Run a case on the current GPU and return the seconds that the GPU took for it.

    A pass over 128 MiB takes an H200 some tens of microseconds, and Python as many to launch it. So the GPU waits until
    all of the case is launched, and the time is taken between two events in its stream. Limitation: what takes the
    host more than LONGEST / 2 to launch is timed with the gaps between its launches, and so is everything where torch
    has no ``torch.cuda._sleep``.

    Args:
        case: a function without arguments.
    """

    def __init__(self, case):
        self.case, self.launching = case, None

    def __call__(self):
        if self.launching is None:
            self.launching = self._host_seconds()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wait = getattr(torch.cuda, "_sleep", lambda cycles: None)
        wait(int(CYCLES * min(2 * self.launching, LONGEST)))
        start.record()
        self.case()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _host_seconds(self):
        self.case()  # which may still compile
        torch.cuda.synchronize()
        before = time.perf_counter()
        self.case()
        seconds = time.perf_counter() - before
        torch.cuda.synchronize()
        return seconds
