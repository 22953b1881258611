"""Several processes of one run, imitated by threads of this one that exchange what processes would."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cdn.processes import Processes


class Exchange:
    """A table on which so many threads lay what they give; one works at a time, for all have the same cores."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count, timeout=60)
        self.turn = threading.Lock()
        self.table = [None] * count

    def wait(self):
        """Let the others work until they wait too."""
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()


@dataclass(frozen=True)
class Threads(Processes):
    """:class:`cdn.processes.Processes` whose exchange is a table."""

    exchange: Exchange = field(kw_only=True)

    def gather(self, value):
        """Return what each of the threads gives."""
        self.exchange.table[self.rank] = value
        self.exchange.wait()
        found = list(self.exchange.table)
        self.exchange.wait()
        return found


def together(count, work):
    """Run a function of :class:`Processes` as each of so many; return what it returned by rank."""
    exchange = Exchange(count)

    def run(rank):
        with exchange.turn:
            try:
                return work(Threads(rank, count, exchange=exchange))
            except BaseException:
                exchange.barrier.abort()  # or the others would wait for the one that failed
                raise

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, rank) for rank in range(count)]
    errors = [future.exception() for future in futures if future.exception()]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
