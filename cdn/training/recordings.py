"""Recordings of one function, one for each kind of its calls."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

from cdn_kernels.graphs import Graphed

Result = TypeVar("Result")


class Recordings(Generic[Result]):
    """Call a function of a training step; after a few calls of one kind, by replaying one of them.

    Args:
        function: takes nothing, see :class:`cdn_kernels.Graphed`.
        kind: says of which kind the next call is, by what the host knows and the shapes of a step depend on.
        device: where it works.
        say: called with a sentence if it cannot be recorded.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        kind: Callable[[], Hashable],
        device: torch.device,
        say: Callable[[str], object],
    ) -> None:
        self.function, self.kind, self.device, self.say = function, kind, device, say
        self.by_kind: dict[Hashable, Graphed[Result]] = {}

    @property
    def gave_up(self) -> bool:
        """Whether a kind of call is not recorded, as it cannot be or would not gain."""
        return any(graphed.gave_up for graphed in self.by_kind.values())

    def __call__(self) -> Result:
        """Do the work of the function and return what it returns."""
        kind = self.kind()
        if kind not in self.by_kind:
            self.by_kind[kind] = Graphed(self.function, self.device, say=self.say)
        return self.by_kind[kind]()
