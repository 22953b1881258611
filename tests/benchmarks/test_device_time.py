"""The time of a GPU is told apart from that of the host that launches its work."""

import time

import pytest
import torch

from benchmarks.harness import device_time
from benchmarks.harness.device_time import DeviceTimer


class Queue:
    """A host and a GPU that works through what is launched, each with a clock of its own."""

    def __init__(self):
        self.host = self.device = 0.0

    def launch(self, seconds, launching=1e-6):
        self.host += launching
        self.device = max(self.device, self.host) + seconds

    def synchronize(self):
        self.host = max(self.host, self.device)

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, queue):
        self.queue = queue

    def record(self):
        self.queue.launch(0.0)
        self.at = self.queue.device

    def synchronize(self):
        self.queue.synchronize()

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def queue(monkeypatch):
    queue = Queue()
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: queue.launch(cycles / device_time.CYCLES), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", queue.synchronize)
    monkeypatch.setattr(torch.cuda, "Event", queue.event)
    monkeypatch.setattr(time, "perf_counter", lambda: queue.host)
    return queue


@pytest.mark.parametrize("kernels, seconds, launching", [(1, 40e-6, 60e-6), (1, 60e-6, 10e-6), (50, 5e-6, 80e-6)])
def test_launching_does_not_count(queue, kernels, seconds, launching):
    timer = DeviceTimer(lambda: [queue.launch(seconds, launching) for _ in range(kernels)])
    assert [timer() for _ in range(3)] == pytest.approx(3 * [kernels * seconds], rel=1e-3)


def test_without_a_gpu_that_waits_launching_counts(queue, monkeypatch):
    monkeypatch.delattr(torch.cuda, "_sleep")
    timer = DeviceTimer(lambda: [queue.launch(5e-6, 80e-6) for _ in range(50)])
    assert timer() == pytest.approx(50 * 80e-6, rel=1e-2)


def test_what_compiles_first_does_not_count(queue):
    first = iter([2.0])
    timer = DeviceTimer(lambda: queue.launch(1e-4, next(first, 3e-5)))
    assert timer() == pytest.approx(1e-4) and queue.host < 2.01


def test_a_case_that_launches_for_long_is_timed_with_its_gaps(queue):
    timer = DeviceTimer(lambda: [queue.launch(1e-6, 1e-3) for _ in range(100)])
    assert timer() == pytest.approx(0.1 - device_time.LONGEST, rel=1e-2)
