"""Run other functions in the place of torch's, wherever those are called."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Substitution(TorchFunctionMode):
    """Within a ``with`` block, run functions in the place of those that are their keys, with the same arguments.

    Nothing is patched: calls are intercepted in this thread, as long as the block lasts.
    """

    def __init__(self, functions: Mapping[Callable[..., Any], Callable[..., Tensor]]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.functions.get(func, func)(*args, **(kwargs or {}))
