"""Compile Triton kernels ahead of time, without a GPU, exactly as the backend's own functions would launch them."""

import contextlib
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from cdn_kernels.backends.triton import operations  # noqa: F401, which imports the modules below

MODULES = [
    sys.modules[f"cdn_kernels.backends.triton.{name}"] for name in ("convolution", "gelu", "noise", "norm", "pool")
]
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass
class Launch:
    """A kernel with the arguments it would run with."""

    kernel: object
    arguments: tuple
    constants: dict
    num_warps: int
    num_stages: int


@dataclass
class Compiled:
    """What a compiled kernel uses, per thread and per program, and how it reads and writes."""

    registers: int
    stack: int  # bytes, where registers are spilled to
    shared: int  # bytes
    wide_loads: int  # of 16 bytes
    wide_stores: int
    wide_copies: int  # of 16 bytes to shared memory, while the program computes
    ptx: str


@contextlib.contextmanager
def recorded():
    """Give a list, and let the backend's functions append to it what they would launch, instead of running it."""
    launches = []

    def record(kernel, programs, *arguments, num_warps=4, num_stages=3, **constants):
        launches.append(Launch(kernel, arguments, constants, num_warps, num_stages))

    originals = [module.launch for module in MODULES]
    for module in MODULES:
        module.launch = record
    try:
        yield launches
    finally:
        for module, original in zip(MODULES, originals):
            module.launch = original


class _Driver:
    """What Triton asks of the driver of a GPU before it launches a kernel there."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)


@contextlib.contextmanager
def launched_to_nowhere(capability):
    """Let Triton's own code bind, specialize and compile what is launched, all but run it; give a list of that.

    Unlike :func:`recorded`, this takes tensors of the CPU, through whatever calls the backend's functions.
    """
    compiled, run, before = [], JITFunction.run, triton.runtime.driver._active

    def dry_run(self, *arguments, grid, warmup, **options):
        compiled.append(run(self, *arguments, grid=grid, warmup=True, **options))

    JITFunction.run = dry_run
    triton.runtime.driver.set_active(_Driver(capability))
    try:
        yield compiled
    finally:
        JITFunction.run, triton.runtime.driver._active = run, before


def compile_launch(launch, capability):
    """Compile for sm_<capability>, as for tensors that are aligned to 16 bytes."""
    signature, constants, attributes = {}, dict(launch.constants), {}
    for index, (parameter, value) in enumerate(zip(launch.kernel.params, launch.arguments)):
        name = parameter.name
        if value is None:
            signature[name], constants[name] = "constexpr", None
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[index,] = [["tt.divisibility", 16]]
        else:
            signature[name] = parameter.annotation_type or "i32"
            if signature[name] == "i32" and value % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
    signature.update(dict.fromkeys(launch.constants, "constexpr"))
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": False}
    source = ASTSource(launch.kernel, signature, constants, attributes)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = _usage(result.asm["cubin"])
    ptx = result.asm["ptx"]
    wide = [len(re.findall(rf"{kind}\.global[.\w:]*\.(?:v4\.b32|v2\.b64)", ptx)) for kind in ("ld", "st")]
    copies = len(re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*, 0x10, ", ptx))
    return Compiled(registers, stack, result.metadata.shared, *wide, copies, ptx)


def _usage(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([CUOBJDUMP, "-res-usage", file.name], check=True, capture_output=True, text=True)
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", listing.stdout).groups())
    return registers, stack + local
