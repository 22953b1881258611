"""Say what runs where: ``python -m cdn_kernels.info``."""
import torch

from . import __version__
from .backends import cpu
from .backends.dispatch import IMPLEMENTATIONS, OPERATIONS, check_impl, why_not

_CPU = torch.device("cpu")


def describe(impl="auto"):
    """List what runs each operation on float32 tensors of the CPU, as pairs (operation, backend).

    An operation for which impl has no kernel yet is listed with "reference"; what cannot be loaded is too.

    Raises:
        ValueError: an unknown impl.
    """
    check_impl(impl)
    return [(operation, _fastest(operation, kernels if impl == "auto" else {impl} & set(kernels)))
            for operation, kernels in OPERATIONS.items()]


def fused_operations(impl="auto"):
    """List the operations that describe() does not leave to the reference."""
    return [operation for operation, backend in describe(impl) if backend != "reference"]


def require_cpu():
    """Raise RuntimeError, with the reason, unless the compiled CPU library is loaded."""
    if cpu.MISSING:
        raise RuntimeError(cpu.MISSING)


def _fastest(operation, backends):
    usable = (b for b in backends if why_not(operation, b, _CPU, torch.float32) is None)
    return next(usable, "reference")


def main():
    """Print versions, backends and the table of operations."""
    print(f"cdn_kernels {__version__}, torch {torch.__version__}\n")
    print("backends")
    print("  reference   available: plain PyTorch, any device")
    state = f"not available: {cpu.MISSING}" if cpu.MISSING else f"available, {cpu.CAPABILITY} kernels"
    print(f"  cpu         {state}\n")
    width = max(map(len, OPERATIONS))
    print(f"{'operation':{width}}  {'  '.join(IMPLEMENTATIONS[1:])}  runs on")
    for operation, backend in describe():
        kernels = ("reference", *OPERATIONS[operation])
        marks = [("yes" if name in kernels else "-").ljust(len(name)) for name in IMPLEMENTATIONS[1:]]
        print(f"{operation:{width}}  {'  '.join(marks)}  {backend}")


if __name__ == "__main__":
    main()
