"""Say what runs where: ``python -m cdn_kernels.info``."""

import platform
import sys

import torch

from cdn_kernels import __version__
from cdn_kernels.backends import cpu, cpu_engines, cuda, measured, triton
from cdn_kernels.backends.convolution_choice import chosen
from cdn_kernels.backends.dispatch import IMPLEMENTATIONS, OPERATIONS, automatic, check_impl, why_not, why_not_automatic
from cdn_kernels.console import run_steadily

_CPU = torch.device("cpu")
# By capability; None where there is no library.
_INSTRUCTIONS = {
    None: "no kernels",
    "scalar": "portable",
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
}


def describe(impl: str = "auto", device: torch.device = _CPU) -> list[tuple[str, str]]:
    """List what runs each operation on float32 tensors of a device, as pairs (operation, backend).

    An operation for which impl has no kernel yet is listed with "reference"; what cannot be loaded is too.

    Raises:
        ValueError: an unknown impl.
    """
    check_impl(impl)
    return [(operation, _fastest(operation, impl, device)) for operation in OPERATIONS]


def hardware(device: torch.device) -> str:
    """Return what the kernels of a device are compiled for: the name of a GPU, or the instructions of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _INSTRUCTIONS[cpu.CAPABILITY]


def _fastest(operation: str, impl: str, device: torch.device) -> str:
    backends: tuple[str, ...] = () if impl == "reference" else (impl,)
    reject = why_not
    if impl == "auto":
        backends, reject = automatic(device, measured.fastest(operation, device, torch.float32)), why_not_automatic
    usable = (b for b in backends if reject(operation, b, device, torch.float32) is None)
    return next(usable, "reference")


def _triton() -> str:
    reason = triton.can_use_triton(torch.device("cpu" if triton.INTERPRETED else "cuda"), torch.float32)
    if reason:
        return f"not available: {reason}"
    where = ", interpreted on the CPU" if triton.INTERPRETED else f" on {torch.cuda.get_device_name()}"
    return f"available{where}\n              convolutions: {chosen('triton')}"


def _cuda() -> str:
    reason = cuda.can_use_cuda(torch.device("cuda"), torch.float32)
    if cuda.MISSING:
        return f"not available: {reason}"
    built = f"built by {cuda.LIBRARY.cdn_cuda_build().decode()}"
    if reason:
        return f"not available: {reason}\n              {built}"
    return f"available on {torch.cuda.get_device_name()}; {built}\n              convolutions: {chosen('cuda')}"


def main() -> None:
    """Print versions, backends and the table of operations."""
    print(
        f"cdn_kernels {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} threads\n"
    )
    print("backends")
    print("  reference   available: plain PyTorch, any device")
    if cpu.MISSING:
        print(f"  cpu         not available: {cpu.MISSING}")
    else:
        print(f"  cpu         available, {cpu.CAPABILITY} kernels; built by {cpu.LIBRARY.cdn_build().decode()}")
        print(f"              processor: {' '.join(cpu.FEATURES) or 'nothing the kernels look for'}")
        print(f"              threads: {cpu.why_not_automatic() or cpu.THREADS or 'one'}")
        print(f"              convolutions: {cpu_engines.describe(cpu.ENGINE, cpu.CAPABILITY)}")
    print(f"  triton      {_triton()}")
    print(f"  cuda        {_cuda()}")
    print(f'  impl="auto" on a GPU: {measured.describe()}\n')
    width = max(map(len, OPERATIONS))
    device = torch.device("cuda") if torch.cuda.is_available() else _CPU
    print(f"{'operation':{width}}  {'  '.join(IMPLEMENTATIONS[1:])}  on {device.type} runs")
    for operation, backend in describe("auto", device):
        kernels = ("reference", *OPERATIONS[operation])
        marks = [("yes" if name in kernels else "-").ljust(len(name)) for name in IMPLEMENTATIONS[1:]]
        print(f"{operation:{width}}  {'  '.join(marks)}  {backend}")


if __name__ == "__main__":
    sys.exit(run_steadily(main, to_the_end=False))
