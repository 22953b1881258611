"""The fixture ``paired``: a case of this library among its peers and floors, in one series of rounds.

pytest-benchmark alone times one function in a loop of its own, minutes apart from the next, which the noise of a shared
machine defeats. Here its fixture times the library, and what it calls between two of its rounds is all the others.
"""

import itertools
import statistics
import time
from dataclasses import dataclass, field

import torch

from benchmarks.harness.ceilings import floor
from benchmarks.harness.device_time import DeviceTimer
from benchmarks.harness.memory import peak_bytes
from benchmarks.harness.record import LIBRARY
from benchmarks.harness.timing import FEWEST_ROUNDS, medians, schedule, summarize
from benchmarks.harness.workers import Died, Refused, Worker, begin_anew
from benchmarks.steps import Problem
from cdn_kernels import machine
from cdn_kernels.backends.dispatch import why_not

_MOST_ROUNDS = 51
# What the runs of a process of its own take together in a round, at least: threads that slept while others ran, or that
# still spin for work, are worth several milliseconds of the first.
_LONG_ENOUGH = 0.1
_MOST_REPEATS = 100
# How often processes of short runs begin anew, and rounds each time, at least: where a process happens to have its
# memory and its threads is worth several per cent of such runs as long as it lives.
_LAUNCHES, _ROUNDS_A_LAUNCH = 9, 3
# Seconds of calls up to which cases that take turns are built anew as often.
_SHORT = 0.06


@dataclass(frozen=True)
class Settings:
    """What the options of the command say, see conftest.py."""

    device: str
    rounds: int | None
    seconds: float
    smoke: bool
    full: bool
    processor_time: bool = False

    @property
    def library(self):
        """The impl that is judged."""
        return "triton" if self.device == "cuda" else "cpu"

    @property
    def others(self):
        """The other backends with kernels for the device, as far as they run here; named as this library's peers."""
        rivals = {"cuda": ("triton", "cuda")}.get(self.device, ())
        return [
            name
            for name in rivals
            if name != self.library and why_not("gelu", name, torch.device(self.device), torch.float32) is None
        ]

    def shape(self, shape):
        """Return [B, C, H, W], tiny in a smoke test."""
        batch, channels, *sides = shape
        return (2, channels, *(min(side, 6) for side in sides)) if self.smoke else shape

    def problem(self, **options):
        """Return a :class:`benchmarks.steps.Problem` that employs the device, or a tiny one in a smoke test."""
        usual = dict(batch=512) if self.device == "cuda" else {}
        tiny = dict(width=8, batch=2, side=8) if self.smoke else {}
        return Problem(device=self.device, **usual | options | tiny)


@dataclass
class Result:
    """What a case has shown; its fields are the extra_info of pytest-benchmark.

    Attributes:
        case: what was done, in words.
        facts: operation, order, dtype, layout, shape and the like.
        seconds: by implementation, one per round; the first is the library. On a GPU those of the device, see
            :class:`.device_time.DeviceTimer`, for a case of this process; in a process of its own all that it takes.
            Where processes begin anew, or cases are built anew, one each time: the median of its rounds.
        ratios: by peer, how many times as long as the library it takes: a Ratio.
        floor: what its yardsticks need for the same work, see :func:`.ceilings.floor`, and the Ratio of the library to
            that.
        peak_bytes: by implementation, or None where not measured.
        refused: by peer, why it did not take part.
        machine: hardware and versions.
        command: what measures this case again.
    """

    case: str
    facts: dict
    seconds: dict = field(default_factory=dict)
    ratios: dict = field(default_factory=dict)
    floor: dict = field(default_factory=dict)
    peak_bytes: dict = field(default_factory=dict)
    refused: dict = field(default_factory=dict)
    machine: dict = field(default_factory=dict)
    command: str = ""


class Paired:
    """Time a case of this library and its peers.

    Args:
        benchmark: the fixture of pytest-benchmark.
        settings: a Settings.
        command: what to say about how to repeat this.
        clock: a function that returns seconds.
    """

    def __init__(self, benchmark, settings, command, clock=time.perf_counter):
        self.benchmark, self.settings, self.command, self.clock = benchmark, settings, command, clock
        self.result = None

    def __call__(self, case, library, peers, work=None, agree=None, memory=True, rounds=None, turns=None, **facts):
        """Time them, and leave the Result in ``result`` and in extra_info.

        Args:
            case: what is done, in words.
            library: (name, function without arguments or a :class:`.workers.Worker`).
            peers: such functions by name. One that raises Refused, or whose process ends, is listed with its reason.
            work: a :class:`.ceilings.Work` that gives the floor.
            agree: a function (name of a peer, the peer) that returns None, or in words how its values differ from the
                library's. A peer with other values is not timed.
            memory: whether to measure it; a case that starts processes has none of its own.
            rounds: how many, for a case that takes minutes.
            turns: a :class:`.workers.Worker` of :class:`.turns.Turns` that has all of them by their names, in which
                they are timed; then the library and the peers themselves are compared and measured for memory only.
            facts: for the record.

        Raises:
            Refused, Died: by the library itself, Died in any of its ways.
        """
        name, function = library
        device = self.settings.device
        clock = dict(clock="processor") if self.settings.processor_time else {}
        in_turn = {} if turns is None else dict(in_turn="calls of one process")
        result = self.result = Result(
            case, facts | clock | in_turn, machine=machine.describe(device), command=self.command
        )
        cases, seconds = {name: function}, {}
        result.peak_bytes[name], seconds[name] = self._warm_up(function, memory)
        for peer, other in peers.items():
            try:
                peak, seconds[peer] = self._warm_up(other, memory)
                difference = agree and agree(peer, other)
                if difference:
                    raise Refused(f"no comparison: {difference}")
                cases[peer], result.peak_bytes[peer] = other, peak
            except (Refused, Died) as refusal:
                if isinstance(refusal, Died) and peer.startswith(LIBRARY):
                    raise
                seconds.pop(peer, None)
                result.refused[peer] = str(refusal)
        yardsticks = work.yardsticks(device) if work else {}
        for key, (yardstick, _) in yardsticks.items():
            cases[key] = yardstick
            _, seconds[key] = self._warm_up(yardstick, memory=False)
        repeats = {key: self._repeats(case, seconds[key]) for key, case in cases.items()}
        if turns is not None:
            times = self._time_turns(turns, list(cases))
        else:
            a_round = sum(seconds[key] * repeats[key] for key in cases)
            times = self._time(name, cases, repeats, rounds or self._rounds(a_round))
        if times:
            self._evaluate(times, name, {key: share for key, (_, share) in yardsticks.items()})
        self.benchmark.extra_info.update(vars(result))

    def _warm_up(self, case, memory):
        """Run a case; return its peak memory, or None where that is not asked for, and the seconds of its last run."""
        device = self.settings.device
        peak = None
        if isinstance(case, Worker):
            case.ready()
            peak = case.peak_bytes(device) if memory else None
        elif memory:
            case()  # what compiles does so at its first call
            start = self.clock()
            return peak_bytes(case, device), self.clock() - start
        start = self.clock()
        case()
        return peak, self.clock() - start

    def _repeats(self, case, seconds):
        """Return how often a case of so many seconds runs in a round."""
        if self.settings.smoke or not isinstance(case, Worker):
            return 1
        return _MOST_REPEATS if seconds * _MOST_REPEATS < _LONG_ENOUGH else max(1, round(_LONG_ENOUGH / seconds))

    def _time(self, library, cases, repeats, rounds):
        """Return seconds by name, one per round; nothing where pytest-benchmark is switched off.

        Then it runs what it is given once, of which a smoke run makes a round: pytest-xdist switches it off, too.
        """
        if self.benchmark.disabled:
            if not self.settings.smoke:
                self.benchmark(cases[library])
                return None
            rounds = 1
        times = {name: [] for name in cases}
        timers = {name: self._timer(case, repeats[name]) for name, case in cases.items()}
        short = [case for name, case in cases.items() if repeats[name] > 1]
        launches = _LAUNCHES if short else 1
        a_launch = max(_ROUNDS_A_LAUNCH, round(rounds / launches)) if short else rounds

        def run(name):
            times[name].append(timers[name]())

        def turns():
            for launch in range(launches):
                if launch:  # all of the one before have run by then
                    begin_anew(short)
                yield from schedule(cases, a_launch, seed=launch)

        order = turns()

        def others():
            for name in itertools.takewhile(lambda name: name != library, order):
                run(name)

        self.benchmark.pedantic(run, (library,), setup=others, rounds=launches * a_launch)
        others()
        return {name: medians(values, a_launch) if short else values for name, values in times.items()}

    def _time_turns(self, turns, names):
        """Return seconds by name, one per round; of short cases the median of each set that was built.

        What pytest-benchmark notes are the sets, each of which takes all cases.
        """
        if self.benchmark.disabled and not self.settings.smoke:
            self.benchmark(turns.times, names, 1)
            return None
        first = [value for (value,) in turns.times(names, 1).values()]
        short = min(first) < _SHORT and not self.settings.smoke
        rounds = self._rounds(sum(first))
        if short and not self.settings.rounds:  # they take little memory in a record: as many as there is time for
            rounds = round(self.settings.seconds / sum(first))
        sets = _LAUNCHES if short else 1
        a_set = max(_ROUNDS_A_LAUNCH, round(rounds / sets)) if short else rounds
        times, seeds = {name: [] for name in names}, itertools.count()

        def run():
            for name, values in turns.times(names, a_set, next(seeds)).items():
                times[name] += [statistics.median(values)] if short else values

        self.benchmark.pedantic(run, rounds=sets)
        return times

    def _timer(self, case, repeats):
        """Return a function that runs a case and returns its seconds, the mean of several runs after one more."""
        if self.settings.device == "cuda" and not isinstance(case, Worker):
            return DeviceTimer(case)

        of_process = self.settings.processor_time and isinstance(case, Worker)
        clock = case.processor_seconds if of_process else self.clock

        def run():
            if repeats > 1:
                case()
            start = clock()
            case() if repeats == 1 else case.repeat(repeats)
            return (clock() - start) / repeats

        return run

    def _rounds(self, seconds):
        """Return how many rounds of so many seconds to take."""
        fewest = 2 if self.settings.smoke else FEWEST_ROUNDS
        return self.settings.rounds or max(fewest, min(_MOST_ROUNDS, round(self.settings.seconds / seconds)))

    def _evaluate(self, times, library, shares):
        own, result = times[library], self.result
        floors = [floor(dict(zip(shares, row)), shares) for row in zip(*(times[name] for name in shares))]
        if floors:
            result.floor = dict(
                seconds=statistics.median(floors),
                yardsticks=list(shares),
                ratio=summarize([a / b for a, b in zip(own, floors)]),
            )
        result.seconds = {name: values for name, values in times.items() if name not in shares}
        result.ratios = {
            name: summarize([a / b for a, b in zip(values, own)])
            for name, values in result.seconds.items()
            if name != library
        }
