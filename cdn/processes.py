"""The processes of one run: which part of a batch is whose, sums over all of them, and the one that writes."""

import contextlib
import functools
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cdn.errors import CDNError, LostError

_T = TypeVar("_T")

# How long a process waits for the others to begin, and later for what they are busy with, before it gives up; how long
# to hear whether another failed before it; and how long for an answer before it asks again.
JOINING, WAITING, HEARING = timedelta(minutes=5), timedelta(hours=1), timedelta(seconds=5)
AGAIN = timedelta(seconds=1)

_PROPOSED = "cdn/word"  # the key under which the first process proposes what _word is to be
_word: str | None = None  # what the processes of this attempt have in common, once they have met


@dataclass(frozen=True)
class Processes:
    """The processes that work on one thing together, seen from one of them.

    What they exchange goes through the default group of torch.distributed. One process alone needs no group, and
    exchanges nothing. Every method but :meth:`share` has to be called by all of them, in the same order, and raises
    :class:`cdn.errors.LostError` where another has ended.

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
        for tensor in tensors:
            self.adding(tensor)()

    def adding(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to replace a tensor by its sum over all processes; return what waits for that."""
        if self.count == 1:
            return lambda: None
        with _exchanging():
            work = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with _exchanging():
                work.wait()

        return wait

    def spread(self, parts: Sequence[Tensor]) -> None:
        """Replace the part of each process, in the order of their ranks, by what that process has there, in place."""
        if self.count > 1:
            with _exchanging():
                for work in [dist.broadcast(part, rank, async_op=True) for rank, part in enumerate(parts) if len(part)]:
                    work.wait()

    def gather(self, value: _T) -> list[_T]:
        """Return what each of the processes gives, in the order of their ranks: anything that can be pickled."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with _exchanging():
            dist.all_gather_object(found, value)
        return found

    def concatenate(self, tensor: Tensor) -> Tensor:
        """Return the parts of all processes in the order of their ranks, [N, ...], on the CPU; lengths may differ."""
        return torch.cat(self.gather(tensor.cpu()))

    def of_first(self, work: Callable[[], _T]) -> _T:
        """Let the first process do some work, which may fail, and return its result, pickled, on all of them.

        Raises:
            CDNError: as :meth:`together`.
        """
        found = [self.together(lambda: work() if self.first else None)]
        if self.count > 1:
            with _exchanging():
                dist.broadcast_object_list(found, 0)
        return found[0]  # type: ignore[return-value]  # by now it is the first one's

    def any(self, asked: bool) -> bool:
        """Return whether any of the processes is asked for something."""
        found = torch.tensor(int(asked))
        self.add(found)
        return bool(found)

    def together(self, work: Callable[[], _T]) -> _T:
        """Do some work that this process may fail at, and raise on all of them what is raised on one.

        Args:
            work: takes nothing, and calls no method of this class but :meth:`share`; what it returns is returned.

        Raises:
            CDNError: of the first process that raised one, of the same type on all of them; on others than that process
                it names it. What is no CDNError is raised as it is, and as a CDNError on the others.
        """
        if self.count == 1:
            return work()
        error, result = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        try:
            errors = self.gather(_sendable(error)) if self.any(error is not None) else []
        except LostError:
            if error is not None:
                raise error from None
            raise
        if error is not None and not isinstance(error, CDNError):
            raise error
        for rank, other in enumerate(errors):
            if other is not None:
                kind, text = other
                raise kind(text if rank == 0 else f"process {rank}: {text}")
        return result  # type: ignore[return-value]  # no error: it is what the work returned


ALONE = Processes()
_LOST = "another process of this run has ended, and this one with it; what was saved is intact"


@contextlib.contextmanager
def joined(device: torch.device, patience: timedelta = JOINING) -> Iterator[Processes]:
    """Join the processes that torchrun started with this one, and leave them at the end.

    They talk through gloo, and on GPUs through NCCL as well.

    Args:
        device: where this process computes, see :func:`local_rank`.
        patience: how long to wait for all to come.

    Yields:
        this process among them; :data:`ALONE` where it was started alone.

    Raises:
        CDNError: the environment of torchrun is incomplete, the others do not come, or have other versions.
    """
    processes = started()
    if processes.count == 1:
        yield processes
        return
    _enter(processes, device, patience)
    try:
        theirs = processes.gather(torch.__version__)
        if len(set(theirs)) > 1:
            raise CDNError(f"processes of one run need one version of torch, got {', '.join(theirs)}")
        yield processes
    except BaseException:
        # Before it leaves, for the others fail as soon as they miss it, with less to say.
        first_to_fail()
        raise
    finally:
        dist.destroy_process_group()


def started() -> Processes:
    """Return this process among those that torchrun, or a like of it, started together; :data:`ALONE` without one.

    Raises:
        CDNError: what the environment says of them cannot be.
    """
    if "RANK" not in os.environ or _whole("WORLD_SIZE") == 1:
        return ALONE
    try:
        return Processes(_whole("RANK"), _whole("WORLD_SIZE"))
    except ValueError as error:
        raise CDNError(str(error)) from None


def local_rank() -> int | None:
    """Return the number of this process among those of its machine, by which it takes a GPU; None if it is alone.

    Raises:
        CDNError: what torchrun says in the environment is no number.
    """
    return None if started().count == 1 else _whole("LOCAL_RANK")


def first_to_fail() -> bool:
    """Tell whether this is the first of the processes of a run to say that it fails, which the others need not repeat.

    Of those that cannot reach the store that torchrun keeps for them, each is the first. The answer stays the same.
    """
    try:
        if started().count == 1:
            return True
        # Processes that torchrun starts anew after a failure may fail anew, also before they meet.
        attempt = _word or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return _first(os.environ["MASTER_ADDR"], _whole("MASTER_PORT"), f"cdn/failed/{attempt}")
    except (CDNError, KeyError):
        return True


@functools.cache
def _first(address: str, port: int, key: str) -> bool:
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=HEARING, wait_for_workers=False)
        return store.add(key, 1) == 1
    except RuntimeError:
        return True


def _enter(processes: Processes, device: torch.device, patience: timedelta) -> None:
    global _word
    rank, count = processes.rank, processes.count
    try:
        address, port = os.environ["MASTER_ADDR"], _whole("MASTER_PORT")
        keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = dist.TCPStore(address, port, is_master=keeps, timeout=patience, wait_for_workers=False)
        # All have to come soon; how long they may then be busy is another matter.
        _word = _agreed(store, rank, count, patience)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        shared = dist.PrefixStore(f"cdn/{_word}/group", store)
        dist.init_process_group(backend, store=shared, rank=rank, world_size=count, timeout=WAITING)
    except (KeyError, RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise CDNError(
            f"process {rank} of {count} did not meet the others at {where} (MASTER_ADDR, MASTER_PORT) within "
            f"{patience.total_seconds():g} s: {_cause(error)}"
        ) from None


def _agreed(store: dist.Store, rank: int, count: int, patience: timedelta) -> str:
    """Return a word that all processes of this attempt have in common, once all are there, and no other attempt has.

    torchrun keeps one store for all its attempts, and processes that are dead by now have written there. Its agents
    count attempts each for itself, and not alike, so that their counts tell attempts apart on one machine only. Here
    the first process proposes a word, the others answer under it with words of their own, and it lists those that it
    heard.

    Raises:
        RuntimeError: not all came in time.
    """
    mine, deadline = secrets.token_hex(8), time.monotonic() + patience.total_seconds()
    if rank == 0:
        store.set(_PROPOSED, mine)
        answers = [f"cdn/{mine}/{other}" for other in range(1, count)]
        store.wait(answers, patience)
        store.set(f"cdn/{mine}/heard", " ".join(store.get(answer).decode() for answer in answers))
        return mine
    while True:
        left = timedelta(seconds=max(deadline - time.monotonic(), 0.001))
        store.wait([_PROPOSED], left)
        word = store.get(_PROPOSED).decode()
        store.set(f"cdn/{word}/{rank}", mine)
        try:
            store.wait([f"cdn/{word}/heard"], min(left, AGAIN))
        except RuntimeError:
            if left < AGAIN:
                raise
            continue
        if mine in store.get(f"cdn/{word}/heard").decode().split():
            return word
        time.sleep(0.05)  # it is of an attempt that is over: the first process is still to come


def _whole(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise CDNError(f"{name}: expected a whole number in the environment, as torchrun sets it, got {text!r}")
    return int(text)


@contextlib.contextmanager
def _exchanging() -> Iterator[None]:
    """Raise LostError where another process does not take part."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostError(f"{_LOST} ({_cause(error)})") from error


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _sendable(error: Exception | None) -> tuple[type[CDNError], str] | None:
    if error is None:
        return None
    if isinstance(error, CDNError):
        return type(error), str(error)
    return CDNError, f"{type(error).__name__}: {_cause(error)}"
