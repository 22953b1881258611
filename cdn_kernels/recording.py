"""Repeat a call of a function on the CPU without Python in between.

The step of a small network takes what torch takes to decide on a thousand operations, not what these compute. A
recording keeps the tensors of one call and the operations that filled them: those of torch, which are called again
with the same tensors as arguments and results, and calls of the compiled library, which are repeated as they were.
Views need no second look, and autograd, autocast and the choice of kernels none either.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from cdn_kernels.backends import cpu
from cdn_kernels.backends.shared_library import observers
from cdn_kernels.recorder import Changed, Recorder, has_hooks, module_has_hooks, storage_of
from cdn_kernels.torch_private import modes_are_active, tensors_in

Result = TypeVar("Result")

# Beyond it a step computes far longer than torch decides, and tensors that are all kept only cost memory.
LARGEST = 256 << 20
MOST_PASSES = 4  # calls until the tensors from outside must be the same
MOST_RECORDINGS = 8
MOST_MISSES = 32
ANY = object()  # a gradient that does not count


class Replayed(Generic[Result]):
    """Call a function; after a few calls, by replaying a recording of one.

    The first call finds the parameters, the second is recorded, and the third replays it and does the same as the
    function is, which must give the same bits; only then calls are replays. Each call does the work of one call.

    A call runs the function as it is while others watch operations (a mode of torch, or another recording), and when
    a value that the function looked at has changed. It is recorded anew when a parameter, buffer or other tensor from
    outside has other memory, shape, dtype or need of gradients, when a module has another mode or parameter, when
    gradients are there that were not, or the other way round, and under another autocast, grad mode or number of
    threads.

    Args:
        function: takes nothing and works on tensors in place, see :class:`cdn_kernels.Graphed`.
        say: called with one sentence if it cannot be replayed; it then runs as it is. Nothing is said of a function
            whose tensors take more than ``largest`` bytes, which would not gain.
        largest: see there.
    """

    def __init__(self, function: Callable[[], Result], say: Callable[[str], object], largest: int = LARGEST) -> None:
        self.function, self.say, self.largest = function, say, largest
        self.gave_up = self.compared = False
        self.passes = self.recordings = self.misses = 0
        self.seen: Recorder | None = None
        self.recording: Recording | None = None

    def __call__(self) -> Result:
        """Do the work of the function and return what it returns."""
        if self.gave_up or observers.calls or modes_are_active():
            return self.function()
        now = conditions()
        if self.recording is not None and self.recording.holds(now):
            try:
                return self.recording.replay() if self.compared else self._compare(self.recording)
            except Changed:
                self.misses += 1
                if self.misses > MOST_MISSES:
                    self._give_up("a value that it looks at changes from call to call")
                return self.function()
        if self.recording is not None:
            self.recording, self.seen, self.passes = None, None, 0
        return self._record(now)

    def _record(self, now: "Conditions") -> Result:
        recorder = Recorder(self.largest, self.seen)
        with recorder:
            result = self.function()
        recorder.see_result(result)
        self.passes += 1
        if recorder.too_large:
            self._give_up()
        elif recorder.refusal is not None:
            self._give_up(recorder.refusal)
        elif recorder.news is None:
            self.recordings += 1
            if self.recordings > MOST_RECORDINGS:
                self._give_up(f"what it works on changed {MOST_RECORDINGS} times")
            else:
                self.recording, self.compared, self.seen = Recording(recorder, result, now), False, None
        elif self.passes == MOST_PASSES:
            self._give_up(f"a tensor {list(recorder.news.shape)} is new at every call, and no operation has made it")
        else:
            self.seen = recorder
            recorder.forget()
        return result

    def _give_up(self, reason: str | None = None) -> None:
        self.gave_up, self.recording, self.seen = True, None, None
        if reason is not None:
            self.say(f"steps run without a recording, because {reason}")

    def _compare(self, recording: "Recording") -> Result:
        """Replay, take that back, and run the function as it is."""
        with torch.no_grad():
            before = [t.clone() for t in recording.changed]
            gradients = [leaf.grad for leaf in recording.leaves]
            found = [t.clone() for t in recording.effects(recording.replay())]
            for tensor, value in zip(recording.changed, before):
                tensor.copy_(value)
        for leaf, gradient in zip(recording.leaves, gradients):
            leaf.grad = gradient
        result = self.function()
        expected = recording.effects(result)
        if len(found) == len(expected) and all(map(_same, found, expected)):
            self.compared = True
        else:
            self._give_up("a replay did not give what the function gives")
        return result


class Conditions(NamedTuple):
    """What a call depends on besides tensors and modules."""

    autocast: bool
    autocast_dtype: torch.dtype
    grad: bool
    inference: bool
    threads: int


def conditions() -> Conditions:
    """Return those of a call now."""
    return Conditions(
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
    )


class Recording:
    """A call of a function that can be repeated.

    Args:
        recorder: saw the call, refused nothing, and no tensor from outside was new.
        result: what the function returned.
        now: the conditions of the call.

    Attributes:
        changed: tensors from outside that a call writes into, or may.
        leaves: tensors from outside that take gradients.
    """

    def __init__(self, recorder: Recorder, result: Any, now: Conditions) -> None:
        self.leaves = list(recorder.leaves.values())
        self._result, self._conditions, self._kept = result, now, recorder.kept
        self._gradients = [leaf.grad for leaf in self.leaves]
        self._needed = [_needed(leaf, recorder) for leaf in self.leaves]
        self._modules = list(recorder.modules.values())
        self._owned = [
            (owner, name, value)
            for module in self._modules
            for owner in (module._parameters, module._buffers)
            for name, value in owner.items()
        ]
        owned = {id(value): value for _, _, value in self._owned if value is not None}
        # Whatever a module owns may be written into by operations that do not declare it.
        self.changed = [*recorder.changed.values(), *(t.detach() for t in owned.values())]
        self._tensors = list((owned | {id(t): t for t in recorder.outside.values()}).values())
        self._seen = self._look()
        self._turns = _turns(recorder, [*tensors_in(result), *(g for g in self._gradients if g is not None)])

    def holds(self, now: Conditions) -> bool:
        """Tell whether a call of the function would still do what was recorded, as far as can be seen."""
        return (
            now == self._conditions
            and all(need is ANY or leaf.grad is need for leaf, need in zip(self.leaves, self._needed))
            and self._look() == self._seen
        )

    def replay(self) -> Any:
        """Do it again and return the result, the tensors of which are always the same.

        Raises:
            Changed: a value that the function looked at is another; nothing from outside was written into.
        """
        with torch.no_grad():
            for operations, calls in self._turns:
                for operation in operations:
                    operation()
                for call in calls:
                    if status := call():
                        cpu.check(status)
        for leaf, gradient in zip(self.leaves, self._gradients):
            leaf.grad = gradient
        return self._result

    def effects(self, result: Any) -> list[Tensor]:
        """Return all that a call leaves: its result, what it wrote into, and gradients."""
        gradients = (leaf.grad for leaf in self.leaves)
        return [*tensors_in(result), *self.changed, *(g for g in gradients if g is not None)]

    def _look(self) -> tuple[list[Any], ...]:
        tensors, modules = self._tensors, self._modules
        return (
            list(map(Tensor.data_ptr, tensors)),
            [t.shape for t in tensors],
            [t.dtype for t in tensors],
            [t.requires_grad for t in tensors],
            [owner.get(name) is value for owner, name, value in self._owned],
            [module.training for module in modules],
            list(map(module_has_hooks, modules)),
            list(map(has_hooks, self.leaves)),
        )


def _needed(leaf: Tensor, recorder: Recorder) -> Any:
    """Return the gradient that a leaf must have when a replay begins."""
    entry = recorder.entry[id(leaf)]
    # One that was there, and was gone when the leaf was first used, the function has cleared itself.
    return ANY if entry is not None and recorder.first_seen[id(leaf)] is None else entry


def _same(found: Tensor, expected: Tensor) -> bool:
    """Tell whether tensors hold the same values, nan included."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    return bool(((found == expected) | ((found != found) & (expected != expected))).all())


# Operations of torch, and then calls of the library that follow.
Turn = tuple[list[Callable[[], Any]], list[Callable[[], int]]]


def _turns(recorder: Recorder, shown: Iterable[Tensor]) -> list[Turn]:
    """Return the calls, those of torch and those of the library by turns, without what need not be done again.

    Args:
        shown: tensors that others get to see, and may write into.
    """
    written = recorder.mutated | {storage_of(t) for t in shown}
    addresses = sorted(recorder.addresses)
    turns: list[Turn] = [([], [])]
    for call in recorder.calls:
        if call.constant is not None and not _is_written(call.constant, written, addresses):
            continue
        if not call.of_library and turns[-1][1]:
            turns.append(([], []))
        turns[-1][call.of_library].append(call.run)
    return turns


def _is_written(tensor: Tensor, written: set[int], addresses: list[int]) -> bool:
    """Tell whether anyone but its maker may write into a tensor."""
    if storage_of(tensor) in written:
        return True
    memory = tensor.untyped_storage()
    first = bisect_left(addresses, memory.data_ptr())
    return first < len(addresses) and addresses[first] < memory.data_ptr() + memory.nbytes()
