"""The gradient of a step, added up over processes in buckets, while its last sweep goes on where hooks can see it."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from cdn.processes import Processes

BUCKET = 8 << 20  # bytes: few enough to begin early, enough to hide what each sum costs to begin


class Reduction:
    """Add up the gradients of some parameters, and the scalars of a step, over all processes.

    Sums are exchanged in one order of buckets on all of them, whichever gradients arrive first or not at all: a process
    without a gradient for a parameter, or without images, adds zeros. All get the same bits. The sums stay where they
    are from step to step: what reads them can be recorded.

    Torch's DistributedDataParallel is no way to do this. It averages over processes, whose shares differ, waits forever
    for a parameter that one of them does not touch, and calls others out of a recorded step.

    Args:
        parameters: of the model, in its order, about the reverse of which their gradients come in.
        names: of the scalars that are added up beside them.
        processes: whose sums these are.
    """

    def __init__(self, parameters: Iterable[Tensor], names: Sequence[str], processes: Processes) -> None:
        self.processes, self.names = processes, names
        self.buckets = _buckets(list(parameters)[::-1])
        memory = self.buckets[0].memory
        self.numbers = torch.zeros(len(names), dtype=memory.dtype, device=memory.device)
        self.complete = False  # whether gradients that arrive are those of all pieces
        self.overlapping = False
        self._waits: list[Callable[[], None]] = []
        self._touched: dict[Hashable, list[set[int]]] = {}

    def overlap(self) -> None:
        """From now on, send a bucket as soon as its gradients are there, by hooks of the parameters."""
        if self.overlapping:
            return
        self.overlapping = True
        for bucket in self.buckets:
            for index, p in enumerate(bucket.parameters):
                p.register_post_accumulate_grad_hook(partial(self._arrived, bucket, index))

    def collect(self, scalars: Mapping[str, Tensor]) -> None:
        """Bring gradients and scalars of this process together, zeros for those that are missing, and send nothing.

        Args:
            scalars: [] each, of those names.
        """
        self.complete = False
        for bucket in self.buckets:
            bucket.fill()
        for number, name in zip(self.numbers, self.names):
            if name in scalars:
                number.copy_(scalars[name])
            else:
                number.zero_()

    def finish(self, kind: Hashable) -> None:
        """Send what has not been sent, and wait until all sums are there.

        Args:
            kind: of the step, the same on all processes: what decides which parameters have a gradient at all.
        """
        self._send(partly=False)
        self._waits.append(self.processes.adding(self.numbers))
        for wait in self._waits:
            wait()
        self._waits = []
        if kind not in self._touched:
            found = self.processes.gather([bucket.touched for bucket in self.buckets])
            self._touched[kind] = [set[int]().union(*of_all) for of_all in zip(*found)]
        for bucket in self.buckets:
            bucket.ready = set()

    def hand_out(self, kind: Hashable) -> dict[str, Tensor]:
        """Give every parameter its gradient, None where no process has one, and return the scalars by name."""
        for bucket, touched in zip(self.buckets, self._touched[kind]):
            for index, p in enumerate(bucket.parameters):
                p.grad = bucket.places[index] if index in touched else None
        return dict(zip(self.names, self.numbers))

    def _arrived(self, bucket: "_Bucket", index: int, parameter: Tensor) -> None:
        if self.complete:
            bucket.take(index)
            self._send(partly=True)

    def _send(self, *, partly: bool) -> None:
        """Begin the sums of the next buckets in order, those that are full or all."""
        for bucket in self.buckets[len(self._waits) :]:
            if partly and len(bucket.ready) < len(bucket.parameters):
                return
            self._waits.append(self.processes.adding(bucket.memory))


class _Bucket:
    """Gradients of one dtype side by side.

    Args:
        parameters: whose gradients it holds.

    Attributes:
        ready: the numbers of those that it has of this step.
        touched: the numbers of those that had a gradient in the last step that was not replayed.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        sizes = [p.numel() for p in parameters]
        self.memory = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        # In the layout of the parameters, which torch wants gradients to have.
        self.places = [
            place.as_strided(p.shape, p.stride(), place.storage_offset())
            for p, place in zip(parameters, self.memory.split(sizes))
        ]
        self.ready: set[int] = set()
        self.touched: set[int] = set()

    def take(self, index: int) -> None:
        """Copy the gradient of a parameter, which is complete."""
        gradient = self.parameters[index].grad
        if gradient is None:
            self.places[index].zero_()
            self.touched.discard(index)
        else:
            self.places[index].copy_(gradient)
            self.touched.add(index)
            self.parameters[index].grad = self.places[index]  # and let go of the other
        self.ready.add(index)

    def fill(self) -> None:
        """Copy what has not arrived."""
        for index in range(len(self.parameters)):
            if index not in self.ready:
                self.take(index)


def _buckets(parameters: list[Tensor]) -> list[_Bucket]:
    """Return buckets of parameters in their order, each of one dtype and about as large as is good."""
    groups: list[list[Tensor]] = []
    size = BUCKET
    for p in parameters:
        if size >= BUCKET or groups[-1][0].dtype != p.dtype:
            groups.append([])
            size = 0
        groups[-1].append(p)
        size += p.numel() * p.element_size()
    return [_Bucket(group) for group in groups]
