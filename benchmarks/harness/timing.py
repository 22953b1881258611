"""Compare on a noisy machine: in turn, in random order, by medians of ratios within a round."""

import math
import random
import statistics
from typing import NamedTuple

CONFIDENCE = 0.95
# Fewer rounds than this cannot bound a median with that confidence.
FEWEST_ROUNDS = 6


class Ratio(NamedTuple):
    """A median of ratios, and an interval that holds the true one with a probability of CONFIDENCE.

    The interval is that of the sign test, between two of the sorted ratios: it assumes nothing about how the noise is
    distributed. With fewer rounds than FEWEST_ROUNDS it reaches from the smallest to the largest, and promises less.
    """

    median: float
    low: float
    high: float

    @property
    def seen(self):
        """Whether there is a difference at all, beyond the noise."""
        return not self.low <= 1 <= self.high

    def __str__(self):
        return self.digits if self.seen else f"no difference seen ({self.low:.2f} to {self.high:.2f})"

    @property
    def digits(self):
        """The median and the interval, whether or not they differ from 1."""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"

    def inverse(self):
        """Return the Ratio the other way round."""
        return Ratio(1 / self.median, 1 / self.high, 1 / self.low)


def summarize(values):
    """Return the Ratio of the values that the rounds gave."""
    ordered, n = sorted(values), len(values)
    # How many values at either end the interval leaves out: as many as chance puts there too rarely to matter.
    outside = 0
    while 2 * sum(math.comb(n, i) for i in range(outside + 2)) <= (1 - CONFIDENCE) * 2**n:
        outside += 1
    return Ratio(statistics.median(ordered), ordered[outside], ordered[-1 - outside])


def schedule(cases, rounds, seed=0):
    """Yield the names of cases round by round, each round in a random order of its own."""
    order = random.Random(seed)
    for _ in range(rounds):
        yield from order.sample(list(cases), len(cases))


def medians(values, count):
    """Return the median of every so many of the values."""
    return [statistics.median(values[i : i + count]) for i in range(0, len(values), count)]
