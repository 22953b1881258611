"""See what a function does on the CPU, below autograd, and note how to do it again into the same memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_int64, c_void_p
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cdn_kernels.backends.shared_library import Read, observers
from cdn_kernels.ops.common import FUNCTIONS
from cdn_kernels.torch_private import (
    TorchDispatchMode,
    WrapperTensor,
    may_be_view,
    out_variant,
    plain_operation,
    tensors_in,
    tree_map,
)

# Results of these are not values, and need nobody to write them.
_EMPTY = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
# Results of these depend on shapes and numbers only, like those of operations without tensors.
_CONSTANT = {
    "aten::zeros_like",
    "aten::ones_like",
    "aten::full_like",
    "aten::new_zeros",
    "aten::new_ones",
    "aten::new_full",
}
_COPIES = {"aten::_to_copy", "aten::clone"}
# Which arguments these write into, though they do not declare it: running means and variances.
_UNDECLARED = {"aten::native_batch_norm": (3, 4), "aten::batch_norm_update_stats": (1, 2)}


class Changed(Exception):
    """A value that the function looked at is not what it was."""


class Call(NamedTuple):
    """One thing to do again.

    Args:
        run: does it; of a call of the library, it returns the status.
        of_library: whether it is one.
        constant: the result, if it is the same every time unless somebody else writes into it.
    """

    run: Callable[[], Any]
    of_library: bool = False
    constant: Tensor | None = None


class Recorder(TorchDispatchMode):
    """See the operations of a function below autograd, run them, and note how to run them again.

    Args:
        largest: bytes of tensors that may be kept.
        before: what was seen of a call before, None if there was none.

    Attributes:
        refusal: why the function cannot be replayed; None if it can.
        too_large: whether that is because of the bytes.
        calls: what to do again, in order.
        outside: tensors that were there before, the first one seen of each memory.
        news: one of them that the call before did not see, None if there is none.
        leaves: those of them that take gradients.
        entry, first_seen: the gradients of the leaves when the function began, of those that were known, and when
            each was first seen.
        changed: tensors from outside that were written into.
        modules: those that were called, and all in them.
    """

    def __init__(self, largest: int, before: "Recorder | None" = None) -> None:
        super().__init__()
        self.before = {} if before is None else before.outside
        leaves = [] if before is None else before.leaves.values()
        self.largest, self.bytes, self.too_large = largest, 0, False
        self.refusal: str | None = None
        self.calls: list[Call] = []
        self.outside: dict[int, Tensor] = {}
        self.news: Tensor | None = None
        self.leaves: dict[int, Tensor] = {}
        self.entry = {id(leaf): leaf.grad for leaf in leaves}
        self.first_seen: dict[int, Tensor | None] = {}
        self.changed: dict[tuple[object, ...], Tensor] = {}
        self.modules: dict[int, nn.Module] = {}
        self.kept: list[Tensor] = []
        self.addresses: set[int] = set()  # that the library was given
        self.mutated: set[int] = set()  # storages that operations in place have written into
        self._made: set[int] = set()  # storages that were made by the calls

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch not to import its compiler for this class, which takes seconds and 125 MB."""
        return False

    def __enter__(self) -> "Recorder":
        """Begin to see operations, calls of the library, and modules."""
        self._of_modules = nn.modules.module.register_module_forward_pre_hook(self._see_module)
        self._previous, observers.calls = observers.calls, self._see_library
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop."""
        super().__exit__(*error)
        observers.calls = self._previous
        self._of_modules.remove()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation; of our own, what it consists of."""
        kwargs = kwargs or {}
        if self.refusal is not None:
            return func(*args, **kwargs)
        wrapper = next((kind for kind in types if issubclass(kind, WrapperTensor)), None)
        if wrapper is not None:
            with self._inside():
                return wrapper.run(func, args, kwargs)
        for tensor in tensors_in((args, kwargs)):
            self._see_tensor(tensor)
        own = FUNCTIONS.get(func.name())
        if own is not None:
            with self._inside():
                return own(*args, **kwargs)
        result = func(*args, **kwargs)
        if self.refusal is None:  # a tensor may have brought one
            try:
                self._note(func, args, kwargs, result)
            except Exception as error:  # nobody's call fails because it cannot be noted
                self._refuse(f"{func} cannot be noted: {type(error).__name__}: {error}")
        return result

    def see_result(self, result: Any) -> None:
        """See what the function has returned, and the gradients that it has left."""
        gradients = (leaf.grad for leaf in self.leaves.values())
        for tensor in (*tensors_in(result), *(g for g in gradients if g is not None)):
            if tensor.requires_grad and id(tensor) not in self.leaves:
                self._refuse("a result, or a gradient, has a graph, of which there is one only")

    @contextmanager
    def _inside(self) -> Iterator[None]:
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)

    def forget(self) -> None:
        """Let go of all but the tensors from outside."""
        self.calls.clear()
        self.kept.clear()
        self.before = {}

    def _refuse(self, reason: str) -> None:
        self.refusal = self.refusal or reason
        self.forget()

    def _see_module(self, module: nn.Module, inputs: object) -> None:
        if id(module) in self.modules:
            return
        for each in module.modules():
            self.modules[id(each)] = each
            if isinstance(each, nn.parallel.DistributedDataParallel):
                self._refuse("a module is DistributedDataParallel, which talks to other processes")
            if module_has_hooks(each):
                self._refuse(f"a module, {type(each).__name__}, has hooks")

    def _see_tensor(self, tensor: Tensor) -> None:
        if not _is_plain(tensor):
            return self._refuse(f"a tensor is {tensor.layout} on {tensor.device}")
        storage = storage_of(tensor)
        if storage in self._made or id(tensor) in self.leaves:
            return None
        known = storage in self.before
        if storage not in self.outside:
            self.outside[storage] = tensor
            if not known:
                self.news = tensor
        # A leaf that is new, on memory that is not, was made by the function, as score functions make their y.
        if _is_leaf(tensor) and (not known or id(tensor) in self.entry):
            self.leaves[id(tensor)] = tensor
            self.first_seen[id(tensor)] = tensor.grad
            if has_hooks(tensor):
                self._refuse("a parameter has hooks")
        return None

    def _see_library(self, function: Any, arguments: tuple[Any, ...]) -> None:
        if self.refusal is not None:
            return
        pointers = (a for a, kind in zip(arguments, function.argtypes) if kind is c_void_p and a is not None)
        self.addresses.update(pointers)
        if any(isinstance(a, Read) for a in arguments):
            sources = [a.source if isinstance(a, Read) else None for a in arguments]
            self.calls.append(Call(partial(_call_with_reads, function, arguments, sources), of_library=True))
        else:
            self.calls.append(Call(partial(function, *arguments), of_library=True))

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note how to run an operation of torch again into the tensors of its result."""
        schema = func._schema
        results, given = list(tensors_in(result)), list(tensors_in((args, kwargs)))
        if func.namespace == "profiler":  # names for a profile, which optimizers give
            return None
        if reason := _why_not(func, args, [*given, *results]):
            return self._refuse(reason)
        if not results and not schema.is_mutable:
            return self._note_value(func, args, kwargs, result) if given else None
        aliases = tree_map(_alias, (args, kwargs))
        if schema.is_mutable:
            return self._note_mutation(func, args, kwargs, aliases)
        sources = {storage_of(t) for t in given}
        if results and all(storage_of(t) in sources for t in results):
            return None  # views
        if any(storage_of(t) in sources for t in results):
            return self._refuse(f"a result of {func} is a view and another is not")
        for index in _UNDECLARED.get(schema.name, ()):
            self._see_mutation(args[index])
        into = [self._made_now(t) for t in results]
        if schema.name in _EMPTY:
            return None
        constant = into[0] if not given or schema.name in _CONSTANT else None
        self.calls.append(Call(_into(func, aliases[0], aliases[1], into), constant=constant))

    def _note_value(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        if self.changed:
            return self._refuse(f"it looks at a value ({func}) after it has changed tensors")
        alias_args, alias_kwargs = tree_map(_alias, (args, kwargs))
        look = partial(plain_operation(func), *alias_args, **alias_kwargs)
        self.calls.append(Call(partial(_look, look, value)))

    def _note_mutation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], aliases: Any) -> None:
        given = _named(func, args) | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._see_mutation(given.get(argument.name))
        alias_args, alias_kwargs = aliases
        self.calls.append(Call(partial(plain_operation(func), *alias_args, **alias_kwargs)))

    def _see_mutation(self, tensors: Any) -> None:
        for tensor in tensors_in(tensors):
            storage = storage_of(tensor)
            self.mutated.add(storage)
            if storage not in self._made:
                self.changed.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), _alias(tensor))

    def _made_now(self, tensor: Tensor) -> Tensor:
        alias = _alias(tensor)
        self._made.add(storage_of(tensor))
        self.kept.append(alias)
        self.bytes += tensor.untyped_storage().nbytes()
        if self.bytes > self.largest:
            self.too_large = True
            self._refuse(f"its tensors take more than {self.largest:,} bytes")
        return alias


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu"


def _why_not(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> str | None:
    """Say why an operation with its arguments, and its tensors and results, cannot be replayed; None if it can."""
    tags = func.tags
    if not all(map(_is_plain, tensors)):
        return f"{func} returns a tensor that is sparse or not on the CPU"
    if func.namespace != "aten":
        return f"it calls {func}, which is not torch's own"
    if torch.Tag.nondeterministic_seeded in tags and _is_random(func, args):
        return f"{func} draws random numbers of torch"
    if torch.Tag.dynamic_output_shape in tags and _shape_is_open(func, args):
        return f"the shape of the result of {func} depends on values"
    if torch.Tag.inplace_view in tags:
        return f"{func} changes a tensor's shape in place"
    return None


def _named(func: Any, args: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments that an operation was given by position, by name."""
    return {argument.name: value for argument, value in zip(func._schema.arguments, args)}


def _is_random(func: Any, args: Sequence[Any]) -> bool:
    """Attention draws nothing without dropout."""
    share = _named(func, args).get("dropout_p")
    return not ("attention" in func._schema.name and share in (None, 0.0))


def _shape_is_open(func: Any, args: Sequence[Any]) -> bool:
    """Indexing is open with masks only."""
    masks = any(t.dtype in (torch.bool, torch.uint8) for t in tensors_in(args[1:]))
    return func._schema.name != "aten::index" or masks


def _alias(tensor: Tensor) -> Tensor:
    """Return a tensor of the same memory, without the graph."""
    return tensor.detach()


def storage_of(tensor: Tensor) -> int:
    """Return a number for the memory of a tensor, its own as long as that lives."""
    return tensor.untyped_storage()._cdata


def _is_leaf(tensor: Tensor) -> bool:
    return tensor.is_leaf and tensor.requires_grad and not may_be_view(tensor)


def module_has_hooks(module: nn.Module) -> bool:
    """Tell whether a call of a module calls others."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_hooks(leaf: Tensor) -> bool:
    """Tell whether a gradient that arrives at a leaf calls others."""
    return bool(leaf._backward_hooks or getattr(leaf, "_post_accumulate_grad_hooks", None))


def _call_with_reads(function: Any, arguments: Sequence[Any], sources: Sequence[int | None]) -> int:
    return function(
        *(a if source is None else c_int64.from_address(source).value for a, source in zip(arguments, sources))
    )


def _look(look: Callable[[], Any], value: Any) -> None:
    if look() != value:
        raise Changed


def _into(func: Any, args: Sequence[Any], kwargs: dict[str, Any], into: list[Tensor]) -> Callable[[], Any]:
    """Return what runs an operation into the tensors of its result."""
    if func._schema.name in _COPIES:
        return partial(into[0].copy_, args[0])
    variant = out_variant(func)
    if variant is not None and len(variant[1]) == len(into):  # not all results are always there
        operation, names = variant
        return partial(operation, *args, **kwargs, **dict(zip(names, into)))
    return partial(_copy, partial(plain_operation(func), *args, **kwargs), into)


def _copy(operation: Callable[[], Any], into: list[Tensor]) -> None:
    for target, source in zip(into, tensors_in(operation())):
        target.copy_(source)
