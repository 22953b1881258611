"""Choose the backend of an operation, and say why another cannot run."""

import functools
import threading
import warnings
from collections.abc import Callable

import torch

from cdn_kernels.backends import cpu, cuda, measured
from cdn_kernels.backends.interface import Kernels
from cdn_kernels.backends.triton import can_use_triton

IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "cuda")

# Every operation of the library, and the backends that have kernels for it. Convolutions of any backend are torch's
# where its own are not faster; what it adds to them is the order of calls.
OPERATIONS = {
    "sample_noise": ("cpu", "triton", "cuda"),
    "standard_normal": ("cpu", "triton", "cuda"),
    "sample_sigma": ("cpu", "triton", "cuda"),
    "denoising_loss": ("cpu", "triton", "cuda"),
    "gelu": ("cpu", "triton", "cuda"),
    "silu": ("cpu",),
    "elu": ("cpu",),
    "conv2d": ("cpu", "triton", "cuda"),
    "conv2d_gelu": ("cpu", "triton", "cuda"),
    "gelu_group_norm": ("cpu", "triton", "cuda"),
    "group_norm": ("cpu",),
    "softmax": ("cpu",),
    "channel_mean": ("cpu", "triton", "cuda"),
    "energy": ("cpu", "triton", "cuda"),
}
# Those that take the place of torch's layers in networks that others wrote, and that no network of the package calls.
OF_OTHERS = ("silu", "elu", "group_norm", "softmax")

# What impl="auto" tries for tensors of a type of device where nothing was measured (measured.py).
AUTOMATIC: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ("triton",)}

_CAN_USE: dict[str, Callable[[torch.device, torch.dtype], str | None]] = {
    "cpu": cpu.can_use_cpu,
    "triton": can_use_triton,
    "cuda": cuda.can_use_cuda,
}
_LOADED: dict[str, Kernels] = {"cpu": cpu, "cuda": cuda}


class _Automatic(threading.local):
    """What impl="auto" means in this thread."""

    impl = "auto"


_automatic = _Automatic()


class using:
    """Let impl="auto" mean another choice within a ``with`` block, for the calls that a model makes inside.

    A class, not a generator: a step enters it once, and pays half as much.

    Args:
        impl: "auto" (the fastest that can run), "reference", or the name of a backend.

    Raises:
        ValueError: an unknown impl.
    """

    __slots__ = ("_impl", "_previous")

    def __init__(self, impl: str) -> None:
        check_impl(impl)
        self._impl = impl

    def __enter__(self) -> None:
        self._previous, _automatic.impl = _automatic.impl, self._impl

    def __exit__(self, *error: object) -> None:
        _automatic.impl = self._previous


def automatic_impl() -> str:
    """Return what impl="auto" means in this thread, as :func:`using` says."""
    return _automatic.impl


def resolve(operation: str, impl: str, device: torch.device, dtype: torch.dtype, fastest: str | None = None) -> str:
    """Return the backend that runs an operation on tensors of a device and dtype.

    Args:
        operation: a key of OPERATIONS.
        impl: "auto" for what :func:`using` says, by default the fastest that can, silently; or the name of one, which
            is never replaced.
        fastest: the backend that was measured to be the fastest for this, or None.

    Raises:
        ValueError: an unknown impl.
        RuntimeError: the chosen backend cannot run this; the message says why.
    """
    check_impl(impl)
    if impl == "auto":
        impl = _automatic.impl
    if impl == "reference":
        return impl
    if impl != "auto":
        reason = why_not(operation, impl, device, dtype)
        if reason:
            raise RuntimeError(f"{operation}: impl={impl!r} cannot run: {reason}")
        return impl
    for backend in automatic(device, fastest):
        if why_not_automatic(operation, backend, device, dtype) is None:
            return backend
    if device.type == "cpu" and not torch.compiler.is_compiling():
        _warn_slow(cpu.MISSING or cpu.why_not_automatic())
    return "reference"


def why_not(operation: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if a backend runs an operation on tensors of a device and dtype, or the reason why not."""
    if backend not in OPERATIONS[operation]:
        return f"the {backend} backend has no kernel for this operation yet"
    return _CAN_USE[backend](device, dtype)


def why_not_automatic(operation: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if impl="auto" may choose a backend for this, or the reason why not."""
    reason = why_not(operation, backend, device, dtype)
    return cpu.why_not_automatic() if reason is None and backend == "cpu" else reason


def automatic(device: torch.device, fastest: str | None = None) -> tuple[str, ...]:
    """Return the backends that impl="auto" tries on a device, fastest first.

    Args:
        fastest: the one that was measured to be, or None.
    """
    return tuple(dict.fromkeys((*filter(None, [fastest]), *AUTOMATIC.get(device.type, ()))))


def fused_backends(device: torch.device, impl: str = "auto", dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Return the backends whose kernels run a network of the package on a device, by operation.

    Args:
        impl: "auto" for the fastest, or the name of one, which is never replaced.
        dtype: of the tensors between the operations.

    Raises:
        ValueError: an unknown impl.
        RuntimeError: an operation would run without kernels, or not by the named backend; the message says why.
    """
    check_impl(impl)
    found = {}
    for operation in (name for name in OPERATIONS if name not in OF_OTHERS):
        tried = automatic(device, measured.fastest(operation, device, dtype)) if impl == "auto" else (impl,)
        reject = why_not_automatic if impl == "auto" else why_not
        reasons = {backend: reject(operation, backend, device, dtype) for backend in tried}
        runs = next((backend for backend in tried if reasons[backend] is None), None)
        if runs is None:
            raise RuntimeError(next(iter(reasons.values()), f"there are no kernels for devices of type {device.type}"))
        found[operation] = runs
    return found


def kernels(backend: str) -> Kernels:
    """Return the module with the kernels of a backend, which offers the functions of cpu.py for its operations.

    That of triton is imported when it is first asked for.
    """
    if backend == "triton" and backend not in _LOADED:
        from cdn_kernels.backends.triton import operations

        return operations
    return _LOADED[backend]


def check_impl(impl: str) -> None:
    """Raise ValueError unless impl is one of IMPLEMENTATIONS."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")


@functools.cache
def _warn_slow(reason: str | None) -> None:
    if reason:
        warnings.warn(f"cdn_kernels runs on plain PyTorch operations: {reason}", stacklevel=4)
