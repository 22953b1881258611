"""The names of torch that are not public, all that this library uses, and what takes their place where one is gone.

Every name is looked up when it is used, and none is needed to import the library.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch

try:
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
except ImportError:

    class TorchDispatchMode:  # type: ignore[no-redef]
        """Stands where torch has no such class, and cannot be entered."""

        def __enter__(self) -> None:
            raise RuntimeError(f"torch {torch.__version__} shows its operations to no one: it has no TorchDispatchMode")

        def __exit__(self, *error: object) -> None: ...


class WrapperTensor(torch.Tensor):
    """A tensor without memory, whose class says what operations do with it.

    Attributes:
        exists: whether torch has such tensors.
    """

    exists = hasattr(torch.Tensor, "_make_wrapper_subclass") and hasattr(torch._C, "_disabled_torch_function_impl")
    __torch_function__ = getattr(torch._C, "_disabled_torch_function_impl", torch.Tensor.__torch_function__)

    @classmethod
    def without_memory(cls, shape: Sequence[int], like: torch.Tensor, *, channels_last: bool = False) -> Any:
        """Return one of a shape, contiguous or channels last, with the dtype and on the device of another tensor."""
        strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
        if channels_last:
            _, channels, height, width = shape
            strides = [channels * height * width, 1, channels * width, channels]
        return cls._make_wrapper_subclass(cls, shape, strides=strides, dtype=like.dtype, device=like.device)

    def value(self) -> torch.Tensor:
        """Return an ordinary tensor that equals it."""
        raise NotImplementedError

    @classmethod
    def run(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation of torch some of whose tensors are of the class."""
        return run_on_values(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub has it without a class
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run any operation."""
        return cls.run(func, args, kwargs or {})


def run_on_values(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation of torch on ordinary tensors in the place of others.

    Raises:
        RuntimeError: it would change one of the others.
    """
    for argument, given in zip(func._schema.arguments, args):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and any(isinstance(t, WrapperTensor) for t in tensors_in(given)):
            raise RuntimeError(f"{func} cannot change a gradient of cdn_kernels in place: clone it")
    read = lambda t: t.value() if isinstance(t, WrapperTensor) else t
    return func(*tree_map(read, args), **tree_map(read, kwargs))


def transforms_are_active() -> bool:
    """Tell whether a torch.func transform is active."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return _refused(_OfNoTransform.apply) if active is None else active()


class _OfNoTransform(torch.autograd.Function):
    """A function without setup_context, which torch refuses to run under transforms."""

    @staticmethod
    def forward(ctx: Any) -> None: ...


def forward_mode_is_active() -> bool:
    """Tell whether forward-mode differentiation is active."""
    level = getattr(torch.autograd.forward_ad, "_current_level", None)
    if level is not None:
        return level >= 0
    zero = torch.zeros(())
    return not _refused(lambda: torch.autograd.forward_ad.make_dual(zero, zero))


def _refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except RuntimeError:
        return True
    return False


def will_run(node: Any) -> bool:
    """Tell whether the running backward pass will run a node of the graph; true where it cannot be known."""
    ask = getattr(torch._C, "_will_engine_execute_node", None)
    try:
        return True if ask is None else ask(node)
    except RuntimeError:  # a leaf
        return True


def graph_is_kept() -> bool:
    """Tell whether the running backward pass keeps its graph for another; true where it cannot be known."""
    ask = getattr(getattr(torch._C, "_autograd", None), "_get_current_graph_task_keep_graph", None)
    return True if ask is None else ask()


def may_be_view(x: torch.Tensor) -> bool:
    """Tell whether a tensor is a view of another; true where it cannot be known."""
    ask = getattr(torch.Tensor, "_is_view", None)
    return True if ask is None else ask(x)


def detached(tree: Any) -> Any:
    """Detach all tensors in nested containers: those that torch knows, dataclasses, namespaces, tuples and dicts.

    torch's own map over containers takes several times as long, and knows no others than those that are registered.
    """
    if isinstance(tree, torch.Tensor):
        return tree.detach()
    node = getattr(getattr(torch.utils, "_pytree", None), "SUPPORTED_NODES", {}).get(type(tree))
    if node is not None:
        values, context = node.flatten_fn(tree)
        return node.unflatten_fn([detached(value) for value in values], context)
    if (dataclasses.is_dataclass(tree) and not isinstance(tree, type)) or isinstance(tree, SimpleNamespace):
        new = copy.copy(tree)
        for name, value in vars(tree).items():
            object.__setattr__(new, name, detached(value))  # frozen ones, too
        return new
    if isinstance(tree, dict):
        return type(tree)((key, detached(value)) for key, value in tree.items())
    if isinstance(tree, (tuple, list)):
        return rebuilt(tree, [detached(value) for value in tree])
    return tree


def rebuilt(old: Any, values: Sequence[Any]) -> Any:
    """Return a tuple or list like another, of other values."""
    return type(old)(*values) if hasattr(old, "_fields") else type(old)(values)


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists and dicts, which is all that torch's operations take and return."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list, dict)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors_in(value)


def weight_norm() -> Any:
    """Return the function that torch.nn.utils.parametrizations.weight_norm calls; None where there is none."""
    return getattr(torch, "_weight_norm", None)


def softmax_backward(p: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Return the gradient by what a softmax p [..., N] was taken of, from that by p."""
    kernel = getattr(torch.ops.aten, "_softmax_backward_data", None)
    if kernel is None:
        return p * (grad - (p * grad).sum(-1, keepdim=True))
    return kernel(grad, p, -1, p.dtype)


def modes_are_active() -> bool:
    """Tell whether someone sees the operations of torch; false where it cannot be known."""
    count = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return count is not None and count() > 0


def tree_map(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Apply a function to the tensors in nested tuples, lists and dicts."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return rebuilt(tree, [tree_map(function, value) for value in tree])
    return tree


def plain_operation(func: Any) -> Callable[..., Any]:
    """Return what an operation of torch.ops calls, without the Python around it."""
    return getattr(func, "_op", func)


# The names in torch._C of what public functions only pass on to.
_PASSED_ON = {
    "flash_sdp_enabled": "_get_flash_sdp_enabled",
    "enable_flash_sdp": "_set_sdp_use_flash",
    "math_sdp_enabled": "_get_math_sdp_enabled",
    "enable_math_sdp": "_set_sdp_use_math",
    "mem_efficient_sdp_enabled": "_get_mem_efficient_sdp_enabled",
    "enable_mem_efficient_sdp": "_set_sdp_use_mem_efficient",
    "cudnn_sdp_enabled": "_get_cudnn_sdp_enabled",
    "enable_cudnn_sdp": "_set_sdp_use_cudnn",
}


def without_python(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a function of torch.backends.cuda calls, or itself where that is not known."""
    return getattr(torch._C, _PASSED_ON[function.__name__], function)


def out_variant(func: Any) -> tuple[Callable[..., Any], list[str]] | None:
    """Return the operation that writes into given tensors what another returns, and how it calls them, or None."""
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    packet = func.overloadpacket
    for name in packet.overloads():
        other = getattr(packet, name)
        out = [a.name for a in other._schema.arguments if a.is_out]
        if out and [(a.name, str(a.type)) for a in other._schema.arguments if not a.is_out] == wanted:
            return plain_operation(other), out
    return None
