"""Compare functions on a noisy machine: in turn, in random order, by the medians of ratios within a round."""
import random
import statistics
import time

import torch


def measure(cases, rounds, seed=0):
    """Time every case once per round, in random order, after one round that does not count.

    Args:
        cases: functions without arguments, by name.
        rounds: how often.

    Returns:
        Seconds by name, one per round.
    """
    order = random.Random(seed)
    times = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name in order.sample(list(cases), len(cases)):
            start = time.perf_counter()
            cases[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times, slow, fast):
    """Return (median, lower and upper quartile) of the ratios of two cases within a round."""
    ratios = [a / b for a, b in zip(times[slow], times[fast])]
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    low, median, high = statistics.quantiles(ratios, n=4)
    return median, low, high
