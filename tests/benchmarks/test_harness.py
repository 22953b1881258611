"""The harness is honest: it sees a difference that is there, and none that is not, on a machine as noisy as ours."""

import dataclasses
import os
import random
import signal

import pytest
import torch

from benchmarks.harness.agreement import agreement
from benchmarks.harness.memory import peak_bytes
from benchmarks.harness.paired import Paired
from benchmarks.harness.timing import Ratio, summarize
from benchmarks.harness.turns import Turns
from benchmarks.harness.workers import Died, Refused, Worker, begin_anew
from tests.benchmarks.records import Benchmark, settings


class Machine:
    """A clock, and functions that move it on by times that drift, jump and jitter."""

    def __init__(self, seed):
        self.now, self.random = 0.0, random.Random(seed)

    def function(self, seconds):
        def run():
            busy = 1.5 if self.now % 40 < 12 else 1.0  # a neighbour, for many rounds at a time
            spike = 3.0 if self.random.random() < 0.05 else 1.0
            self.now += seconds * busy * spike * self.random.lognormvariate(0, 0.05)

        return run


def compare(seconds, seed, rounds=25):
    """Return what a comparison of a library that takes a second with a peer finds."""
    machine = Machine(seed)
    paired = Paired(Benchmark(), settings(rounds), "", clock=lambda: machine.now)
    paired("case", ("library", machine.function(1.0)), {"peer": machine.function(seconds)}, memory=False)
    return paired.result.ratios["peer"]


def test_identical_implementations_measure_one_within_the_stated_spread():
    found = [compare(1.0, seed) for seed in range(300)]
    assert sum(ratio.seen for ratio in found) <= 0.08 * len(found)  # 5 %, and the luck of 300 draws
    assert abs(sorted(ratio.median for ratio in found)[150] - 1) < 0.02


def test_a_slower_peer_is_detected():
    found = [compare(1.3, seed) for seed in range(300)]
    assert sum(ratio.seen and ratio.median > 1 for ratio in found) >= 0.98 * len(found)
    assert sum(ratio.low <= 1.3 <= ratio.high for ratio in found) >= 0.92 * len(found)


def test_a_slowed_library_is_detected():
    found = [compare(1 / 1.3, seed) for seed in range(100)]
    assert sum(ratio.seen and ratio.median < 1 for ratio in found) >= 98


def test_the_interval_is_that_of_the_sign_test():
    values = [float(i) for i in range(1, 10)]
    assert summarize(values) == Ratio(5.0, 2.0, 8.0)  # 2 (1 + 9) / 2^9 = 3.9 %; one more would be 18 %
    assert summarize(values[:6]) == Ratio(3.5, 1.0, 6.0)
    assert summarize([2.0]) == Ratio(2.0, 2.0, 2.0)


def test_a_difference_hidden_by_noise_is_not_printed_as_a_ratio():
    assert str(Ratio(1.07, 0.94, 1.2)) == "no difference seen (0.94 to 1.20)"
    assert str(Ratio(1.07, 1.02, 1.2)) == "1.07 (1.02 to 1.20)"


def test_every_case_runs_once_a_round_in_changing_order():
    calls = []
    paired = Paired(Benchmark(), settings(20), "")
    paired("case", ("library", lambda: calls.append("library")), {"peer": lambda: calls.append("peer")}, memory=False)
    counted = calls[-40:]
    rounds = [tuple(counted[i : i + 2]) for i in range(0, 40, 2)]
    assert set(rounds) == {("library", "peer"), ("peer", "library")}


def test_a_peer_with_other_values_is_not_timed():
    paired = Paired(Benchmark(), settings(3), "")
    paired(
        "case",
        ("library", lambda: None),
        {"wrong": lambda: None, "right": lambda: None},
        memory=False,
        agree=lambda name, peer: "values differ" if name == "wrong" else None,
    )
    assert paired.result.refused == {"wrong": "no comparison: values differ"}
    assert set(paired.result.ratios) == {"right"}


class Doubling:
    """A case for another process."""

    def __init__(self, value):
        if value < 0:
            raise RuntimeError("value must be positive")
        self.value = value

    def __call__(self):
        self.value *= 2
        return self.value

    def result(self):
        return torch.tensor([self.value])


def test_a_worker_runs_and_answers_until_it_is_dead():
    with Worker(Doubling, 1.0) as worker:
        first = worker()
        assert worker() == 2 * first and worker.result().tolist() == [2 * first]
        worker.repeat(3)
        assert worker.result().tolist() == [16 * first]
        worker.process.kill()
        with pytest.raises(Died, match="the process of Doubling ended with SIGKILL"):
            worker()


def test_a_worker_says_why_it_refuses():
    with Worker(Doubling, -1.0) as worker, pytest.raises(Refused, match="RuntimeError: value must be positive"):
        worker()


class Crashing:
    """A case whose process ends when it runs."""

    def __call__(self):
        os.kill(os.getpid(), signal.SIGSEGV)


def test_a_peer_whose_process_ends_is_listed_with_that():
    paired = Paired(Benchmark(), settings(7), "")
    with Worker(Crashing) as crashing:
        paired("case", ("this library", Busy(2.0)), {"crashing": crashing, "peer": Busy(3.0)}, memory=False)
    assert paired.result.refused == {"crashing": "the process of Crashing ended with SIGSEGV"}
    assert set(paired.result.ratios) == {"peer"}


def test_a_process_of_the_library_must_not_end():
    case = "case", ("this library", Busy(2.0))
    with Worker(Crashing) as crashing, pytest.raises(Died, match="SIGSEGV"):
        Paired(Benchmark(), settings(7), "")(*case, {"this library, call by call": crashing}, memory=False)


class Busy(Worker):
    """Stands for a process whose every run takes some seconds of a processor."""

    def __init__(self, seconds, slower=1.0):
        self.seconds, self.total, self.repeated = seconds, 0.0, []
        self.slower, self.begun = slower, 1

    def ready(self): ...

    def prepare(self): ...

    def begin_anew(self):
        self.begun += 1
        self.seconds *= self.slower

    def __call__(self):
        self.total += self.seconds

    def repeat(self, times):
        self.repeated.append(times)
        self.total += times * self.seconds

    def processor_seconds(self):
        return self.total


def test_time_on_processors_is_that_of_the_processes():
    options = dataclasses.replace(settings(7), processor_time=True)
    paired = Paired(Benchmark(), options, "")
    paired("case", ("library", Busy(2.0)), {"peer": Busy(3.0)}, memory=False)
    assert paired.result.seconds == {"library": 9 * [2.0], "peer": 9 * [3.0]}  # they are short by the clock
    assert paired.result.ratios == {"peer": Ratio(1.5, 1.5, 1.5)} and paired.result.facts["clock"] == "processor"


@pytest.mark.parametrize("seconds, repeats", [(0.5, 0), (0.08, 0), (0.04, 2), (0.001, 100), (1e-6, 100)])
@pytest.mark.parametrize("rounds, all_rounds", [(7, 27), (45, 45)])
def test_short_runs_of_a_process_are_repeated_after_one_that_does_not_count(seconds, repeats, rounds, all_rounds):
    workers = Busy(seconds), Busy(2.0)
    paired = Paired(Benchmark(), settings(rounds), "", clock=lambda: sum(worker.total for worker in workers))
    paired("case", ("library", workers[0]), {"peer": workers[1]}, memory=False)
    assert workers[0].repeated == all_rounds * [repeats] * (repeats > 0) and not workers[1].repeated
    assert paired.result.seconds["library"] == pytest.approx((9 if repeats else rounds) * [seconds])
    assert paired.result.ratios["peer"].median == pytest.approx(2.0 / seconds)


def test_processes_of_short_runs_begin_anew_and_give_one_value_each_time():
    workers = Busy(0.001, slower=2.0), Busy(0.001)
    paired = Paired(Benchmark(), settings(27), "", clock=lambda: sum(worker.total for worker in workers))
    paired("case", ("library", workers[0]), {"peer": workers[1]}, memory=False)
    assert [worker.begun for worker in workers] == [9, 9]
    assert paired.result.seconds["library"] == pytest.approx([0.001 * 2**launch for launch in range(9)])
    assert paired.result.seconds["peer"] == pytest.approx(9 * [0.001])


def test_a_worker_begins_anew():
    with Worker(Doubling, 1.0) as worker:
        before = worker(), worker.process.pid
        begin_anew([worker])
        assert worker.process.pid != before[1] and worker.result().tolist() == [before[0]]


class Lasting:
    """A case that takes some seconds of a clock, which its class shows, and one percent more each time it is built."""

    now, built = 0.0, {}

    def __init__(self, name, seconds):
        self.built[name] = self.built.get(name, 0) + 1
        self.seconds = seconds * 1.01 ** (self.built[name] - 1)

    def __call__(self):
        Lasting.now += self.seconds


class Here(Turns):
    """Turns in this process, with that clock."""

    def __init__(self, **seconds):
        super().__init__({name: (Lasting, name, value) for name, value in seconds.items()})
        self.clock, self.calls = lambda: Lasting.now, []
        Lasting.built = {}

    def times(self, names, rounds, seed=0):
        self.calls.append((sorted(names), rounds, seed))
        return super().times(names, rounds, seed)


def in_turn(turns, seconds, rounds=None, **others):
    """Return what a comparison of processes finds that would take some seconds, but are timed in turn."""
    workers = {name: Busy(value) for name, value in seconds.items()}
    (name, library), *peers = workers.items()
    paired = Paired(Benchmark(), settings(rounds), "", clock=lambda: sum(worker.total for worker in workers.values()))
    paired("case", (name, library), dict(peers), memory=False, turns=turns, **others)
    return paired.result


def test_short_calls_are_timed_in_sets_that_are_built_anew():
    turns = Here(library=0.01, peer=0.02)
    found = in_turn(turns, dict(library=0.01, peer=0.02))
    rounds = round(1.0 / 9 / 0.03)  # of one second, in nine sets
    assert turns.calls[1:] == [(["library", "peer"], rounds, seed) for seed in range(9)]
    assert found.seconds["library"] == pytest.approx([0.01 * 1.01**built for built in range(1, 10)])
    assert found.ratios["peer"] == pytest.approx((2.0, 2.0, 2.0)) and found.facts["in_turn"] == "calls of one process"


def test_of_long_calls_in_turn_each_counts():
    turns = Here(library=1.0, peer=1.5)
    found = in_turn(turns, dict(library=1.0, peer=1.5), rounds=7)
    assert turns.calls == [(["library", "peer"], 1, 0), (["library", "peer"], 7, 0)]
    assert found.seconds == {"library": pytest.approx(7 * [1.01]), "peer": pytest.approx(7 * [1.515])}


def test_a_peer_that_is_refused_is_not_timed_in_turn():
    turns = Here(library=1.0, peer=1.5, wrong=0.5)
    wrong = lambda name, peer: "other values" if name == "wrong" else None
    found = in_turn(turns, dict(library=1.0, peer=1.5, wrong=0.5), rounds=7, agree=wrong)
    assert all(names == ["library", "peer"] for names, *_ in turns.calls)
    assert set(found.ratios) == {"peer"} and found.refused == {"wrong": "no comparison: other values"}


def test_calls_take_turns_in_another_process():
    with Worker(Turns, {"one": (Doubling, 1.0), "other": (Doubling, 2.0)}) as turns:
        seconds = turns.times(["one", "other"], 5, 0)
        assert {name: len(values) for name, values in seconds.items()} == {"one": 5, "other": 5}
        assert all(value >= 0 for values in seconds.values() for value in values)
        assert set(turns.times(["other"], 1, 0)) == {"other"}


def test_peak_memory_counts_what_is_gone_again():
    size = 64 * 2**20

    def allocate():
        torch.ones(size, dtype=torch.uint8)

    peak = peak_bytes(allocate)
    assert peak is None or 0.98 * size <= peak < 1.5 * size  # Linux counts pages by the dozen


class Gaps:
    """A case that frees every second buffer, and then needs larger ones than were freed."""

    COUNT, SMALL, LARGE = 200, 2**18, 2**18 + 2**16
    USED = COUNT * (SMALL + LARGE)

    def __call__(self):
        buffers = [torch.ones(self.SMALL, dtype=torch.uint8) for _ in range(2 * self.COUNT)][::2]
        buffers += [torch.ones(self.LARGE, dtype=torch.uint8) for _ in range(self.COUNT)]


def test_peak_memory_of_a_worker_is_that_of_buffers_in_use():
    with Worker(Gaps) as worker:
        peak = worker.peak_bytes("cpu")
    assert peak is None or 0.98 * Gaps.USED <= peak < 1.1 * Gaps.USED
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ


@pytest.mark.parametrize(
    "own, its, refused",
    [
        (1.0, 1.04, None),
        (0.9, 1.09, None),  # far from each other, as far from what is exact
        (0.97, 1.09, "from exact values the library's by 0.03, its by 0.09"),
        (0.84, 1.16, "from exact values the library's by 0.16, its by 0.16"),
        (float("nan"), 1.0, "values differ by inf"),
    ],
)
def test_what_rounding_decides_is_held_against_exact_values(own, its, refused):
    case = lambda value: lambda: [torch.tensor([value])]
    found = agreement(case(own), 0.05, lambda: case(1.0))("peer", case(its))
    assert found is None if refused is None else refused in found
    if refused is None and abs(own - its) > 0.05:
        assert "values differ by" in agreement(case(own), 0.05)("peer", case(its))
