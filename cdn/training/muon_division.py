"""The orthogonalization of Muon's matrices, divided over processes where that takes less time."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from cdn.processes import Processes
from cdn.training.muon import STEPS, orthogonalize, orthogonalize_all, result_dtype


class Division:
    """Orthogonalize matrices, each in one of several processes, which sends it to the others; or all in each.

    All processes get the same bits. Which way is faster depends on the link between them as much as on their
    processors, so both are timed once, in the second call, and all processes agree on one.

    Args:
        processes: that have the same matrices, and call this together.

    Attributes:
        divided: whether the work is divided; None until that is known.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.divided: bool | None = None
        self._calls = 0

    def __call__(self, matrices: list[Tensor]) -> list[Tensor]:
        """Return the orthogonalized matrices, see :func:`.muon.orthogonalize`."""
        if not matrices:
            return []
        self._calls += 1
        if self._calls == 2:  # the first one meets cold caches and connections
            self._decide(matrices)
        return orthogonalize_all(matrices) if self.divided is False else self._each_one(matrices)

    def _decide(self, matrices: list[Tensor]) -> None:
        times = torch.tensor([_seconds(way, matrices) for way in (orthogonalize_all, self._each_one)])
        self.processes.add(times)
        self.divided = bool(times[1] < times[0])

    def _each_one(self, matrices: list[Tensor]) -> list[Tensor]:
        """Orthogonalize those of this process, and exchange them."""
        first, dtype, parts = matrices[0], result_dtype(matrices[0]), []
        of_each = shares(matrices, self.processes.count)
        for rank, indices in enumerate(of_each):
            part = first.new_empty(sum(matrices[index].numel() for index in indices), dtype=dtype)
            if rank == self.processes.rank and indices:
                torch.cat([orthogonalize(matrices[index]).flatten() for index in indices], out=part)
            parts.append(part)
        self.processes.spread(parts)
        found = {
            index: piece.view(matrices[index].shape)
            for part, indices in zip(parts, of_each)
            for index, piece in zip(indices, part.split([matrices[index].numel() for index in indices]))
        }
        return [found[index] for index in range(len(matrices))]


def shares(matrices: list[Tensor], count: int) -> list[list[int]]:
    """Return the places of the matrices that each of so many processes takes, for about the same work."""
    work = [min(m.shape) ** 2 * (2 * max(m.shape) + 3 * STEPS * min(m.shape)) for m in matrices]
    loads, found = [0] * count, [list[int]() for _ in range(count)]
    for index in sorted(range(len(matrices)), key=lambda index: -work[index]):
        least = loads.index(min(loads))
        loads[least] += work[index]
        found[least].append(index)
    return found


def _seconds(way: Callable[[list[Tensor]], list[Tensor]], matrices: list[Tensor]) -> float:
    wait = torch.cuda.synchronize if matrices[0].is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    way(matrices)
    wait()
    return time.perf_counter() - start
