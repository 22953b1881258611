"""Choose the backend of an operation, and say why another cannot run."""
import contextlib
import functools
import threading
import warnings

import torch

from . import cpu

IMPLEMENTATIONS = ("auto", "reference", "cpu")

# Every operation of the library, and the backends that have a kernel of their own for it, fastest first.
OPERATIONS = {
    "sample_noise": ("cpu",),
    "standard_normal": ("cpu",),
    "sample_sigma": ("cpu",),
    "denoising_loss": ("cpu",),
    "gelu": ("cpu",),
    "conv2d": ("cpu",),
    "conv2d_gelu": ("cpu",),
    "gelu_group_norm": ("cpu",),
    "channel_mean": ("cpu",),
    "energy": ("cpu",),
}

_CAN_USE = {"cpu": cpu.can_use_cpu}


class _Automatic(threading.local):
    """What impl="auto" means in this thread."""

    impl = "auto"


_automatic = _Automatic()


@contextlib.contextmanager
def using(impl):
    """Let impl="auto" mean another choice within a block, for the calls that a model makes inside.

    Args:
        impl: "auto" (the fastest that can run), "reference", or the name of a backend.

    Raises:
        ValueError: an unknown impl.
    """
    check_impl(impl)
    previous, _automatic.impl = _automatic.impl, impl
    try:
        yield
    finally:
        _automatic.impl = previous


def resolve(operation, impl, device, dtype):
    """Return the backend that runs an operation on tensors of a device and dtype.

    Args:
        operation: a key of OPERATIONS.
        impl: "auto" for what :func:`using` says, by default the fastest that can, silently; or the name of one, which
            is never replaced.

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
    for backend in OPERATIONS[operation]:
        if why_not(operation, backend, device, dtype) is None:
            return backend
    if cpu.MISSING and device.type == "cpu" and not torch.compiler.is_compiling():
        _warn_missing()
    return "reference"


def why_not(operation, backend, device, dtype):
    """Return None if a backend runs an operation on tensors of a device and dtype, or the reason why not."""
    if backend not in OPERATIONS[operation]:
        return f"the {backend} backend has no kernel for this operation yet"
    return _CAN_USE[backend](device, dtype)


def check_impl(impl):
    """Raise ValueError unless impl is one of IMPLEMENTATIONS."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")


@functools.cache
def _warn_missing():
    warnings.warn(f"cdn_kernels runs on plain PyTorch operations: {cpu.MISSING}", stacklevel=4)
