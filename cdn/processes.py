"""The processes of one run: which part of a batch is whose, sums over all of them, and the one that writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cdn.errors import CDNError

_T = TypeVar("_T")
# How long processes wait for each other: to begin together, and for what they exchange; and to hear of a failure.
JOINING, WAITING, HEARING = timedelta(minutes=5), timedelta(minutes=30), timedelta(seconds=10)


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
            with self._exchange():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def gather(self, value: _T) -> list[_T]:
        """Return what each of the processes gives, in the order of their ranks: anything that can be pickled."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with self._exchange():
            dist.all_gather_object(found, value)
        return found

    def concatenate(self, tensor: Tensor) -> Tensor:
        """Return the parts of all processes in the order of their ranks, [N, ...], on the CPU; lengths may differ."""
        return torch.cat(self.gather(tensor.cpu()))

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Say in a sentence that another process ended, or is silent."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise CDNError(
                f"another of the {self.count} processes ended, or gave no sign for {WAITING}: {_line(error)}"
            ) from None


ALONE = Processes()


def started() -> Processes:
    """Return the processes that torchrun, or a like of it, started this one among, by RANK and WORLD_SIZE.

    Raises:
        CDNError: these variables say what cannot be.
    """
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or count in (None, "1"):
        return ALONE
    try:
        return Processes(int(rank), int(count or ""))
    except ValueError:
        raise CDNError(
            f"RANK, WORLD_SIZE: expected the number of one of several processes, got {rank}, {count}"
        ) from None


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the group of processes that :func:`started` this one, and leave it at the end; ALONE where there is none.

    Args:
        device: where this process computes: what is exchanged goes by NCCL for a GPU, else by gloo.

    Raises:
        CDNError: the others cannot be reached, or do not come.
    """
    processes = started()
    if processes.count == 1:
        yield processes
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=JOINING))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=WAITING)
    except (RuntimeError, ValueError) as error:
        who = f"process {processes.rank} of {processes.count}"
        raise CDNError(f"{who} could not join the others: {_line(error)}") from None
    try:
        yield processes
    finally:
        dist.destroy_process_group()


def first_to_fail() -> bool:
    """Tell whether this is the first of the processes of a run to say that it fails, which the others need not repeat.

    Of those that cannot reach the store that torchrun keeps for them, each is the first.
    """
    if started().count == 1:
        return True
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=HEARING, wait_for_workers=False)
        # Processes that torchrun starts anew after a failure may fail anew.
        return store.add(f"cdn/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
