"""Compile Triton kernels ahead of time, without a GPU, exactly as the backend's own functions would launch them."""

import contextlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from cdn_kernels.backends.triton import operations  # noqa: F401, which the tests run

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Launch(NamedTuple):
    """A kernel, the arguments and the constants and options that it would run with, and what Triton makes of it."""

    name: str
    arguments: tuple
    constants: dict
    compiled: CompiledKernel | None


class Code(NamedTuple):
    """What a compiled kernel uses, per thread and per program, and how it reads and writes."""

    registers: int
    stack: int  # bytes, where registers are spilled to
    shared: int  # bytes
    wide_loads: int  # of 16 bytes
    wide_stores: int
    wide_copies: int  # of 16 bytes to shared memory, while the program computes
    ptx: str


class _Driver:
    """What Triton asks of the driver of a GPU before it launches a kernel there."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return self.capability  # for Triton keeps what it has compiled for each device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)


@contextlib.contextmanager
def launched_to_nowhere(capability):
    """Let Triton's own code bind, specialize and compile what is launched, all but run it; give a list of that.

    Args:
        capability: ten times that of the GPU; if None, nothing is compiled.

    Tensors may be those of any device without a GPU; those that hold nothing count as aligned.
    """
    launches, run, before = [], JITFunction.run, triton.runtime.driver._active

    def dry_run(self, *arguments, grid, warmup, **constants):
        made = None if capability is None else run(self, *arguments, grid=grid, warmup=True, **constants)
        launches.append(Launch(self.__name__, arguments, constants, made))

    JITFunction.run = dry_run
    triton.runtime.driver.set_active(_Driver(capability))
    try:
        yield launches
    finally:
        JITFunction.run, triton.runtime.driver._active = run, before


def code_of(launch):
    """Return the Code of what was launched."""
    compiled = launch.compiled
    registers, stack = _usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    wide = [len(re.findall(rf"{kind}\.global[.\w:]*\.(?:v4\.b32|v2\.b64)", ptx)) for kind in ("ld", "st")]
    copies = len(re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*, 0x10, ", ptx))
    return Code(registers, stack, compiled.metadata.shared, *wide, copies, ptx)


def _usage(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([CUOBJDUMP, "-res-usage", file.name], check=True, capture_output=True, text=True)
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", listing.stdout).groups())
    return registers, stack + local
