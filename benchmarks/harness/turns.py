"""Time cases of one process call by call, in turn: what several processes differ in is the same for all of them."""

import time

from benchmarks.harness.timing import schedule

_WARM_UPS = 2  # what a case learns in its first call shows in the second


class Turns:
    """Cases that take turns, for a :class:`.workers.Worker`.

    Args:
        ways: (factory, arguments, ...) by name; what a factory returns is called without arguments.
        clock: "wall", or "processor" for the time on processors, of all threads.
    """

    def __init__(self, ways, clock="wall"):
        self.ways = ways
        self.clock = {"wall": time.perf_counter, "processor": time.process_time}[clock]

    def __call__(self):
        self.times(list(self.ways), 1)

    def times(self, names, rounds, seed=0):
        """Build the named cases anew, run them in random order; return seconds by name, one per round.

        Anew, because where a case happens to have its memory is worth some per cent of it as long as it lives.
        """
        cases = {name: factory(*args) for name, (factory, *args) in self.ways.items() if name in names}
        for _ in range(_WARM_UPS):
            for case in cases.values():
                case()
        seconds = {name: [] for name in cases}
        for name in schedule(cases, rounds, seed):
            start = self.clock()
            cases[name]()
            seconds[name].append(self.clock() - start)
        return seconds
