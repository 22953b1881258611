"""The processes of one run: which part of a batch is whose, sums over all of them, and the one that writes."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")


@dataclass(frozen=True)
class Processes:
    """The processes that work on one thing together, seen from one of them.

    What they exchange goes through the default group of torch.distributed. One process alone needs no group, and
    exchanges nothing. Every method but :meth:`share` has to be called by all of them, in the same order.

    Args:
        rank: the number of this process, from 0.
        count: how many there are.

    Raises:
        ValueError: a rank that is not below the count.
    """

    rank: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(f"rank: expected one of {self.count} processes, 0 to {self.count - 1}, got {self.rank}")

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """Return which of so many things are this process's: contiguous, as many as the others to one thing."""
        return range(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def add(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over all processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def gather(self, value: _T) -> list[_T]:
        """Return what each of the processes gives, in the order of their ranks: anything that can be pickled."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def concatenate(self, tensor: Tensor) -> Tensor:
        """Return the parts of all processes in the order of their ranks, [N, ...], on the CPU; lengths may differ."""
        return torch.cat(self.gather(tensor.cpu()))


ALONE = Processes()
