"""Run a module with other tensors in the place of its parameters and buffers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn


@contextmanager
def replaced(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Put tensors in the place of parameters and buffers, wherever a module uses them, and put all back afterwards.

    torch.func.functional_call does it by name, and a submodule that has two names is left with the tensors in the place
    of its parameters (torch 2.13): training goes on without them, and nothing says so. Here every place is found by the
    tensor that is there, once.

    Args:
        module: any module, also one with shared submodules, tied or parametrized parameters.
        tensors: by the names that ``named_parameters`` and ``named_buffers`` give.
    """
    names = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    new = {id(names[name]): tensor for name, tensor in tensors.items()}
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for part in module.modules():
        # Beside parameters and buffers, what a forward computes of them and keeps, as torch.nn.utils.weight_norm does.
        attributes: Iterable[dict[str, Any]] = (cast(Any, part._parameters), part._buffers, vars(part))
        for places in attributes:
            found = {name: value for name, value in places.items() if isinstance(value, Tensor)}
            if found:
                before.append((places, found))
                places.update({name: new[id(value)] for name, value in found.items() if id(value) in new})
        weights = vars(part).get("_flat_weights")  # of recurrent layers, beside their parameters
        if weights is not None:
            before.append((vars(part), {"_flat_weights": weights}))
            vars(part)["_flat_weights"] = [new.get(id(weight), weight) for weight in weights]
    try:
        yield
    finally:
        for places, found in before:
            places.update(found)
