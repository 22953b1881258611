"""Compile the kernels ahead of time, without a GPU, as the backend's own functions would launch them."""
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

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
MODULES = ("gelu", "noise", "norm", "pool")
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
         torch.int32: "*i32"}


@dataclass
class Launch:
    """A kernel with the arguments it would run with."""

    kernel: object
    arguments: tuple
    constants: dict
    num_warps: int


@contextlib.contextmanager
def recorded(launches):
    """Let the backend's functions append what they launch to a list instead of running it."""
    def record(kernel, programs, *arguments, num_warps=4, **constants):
        launches.append(Launch(kernel, arguments, constants, num_warps))

    modules = [sys.modules[f"cdn_kernels.backends.triton.{name}"] for name in MODULES]
    originals = [module.launch for module in modules]
    for module in modules:
        module.launch = record
    try:
        yield
    finally:
        for module, original in zip(modules, originals):
            module.launch = original


def compiled(launch, capability):
    """Compile a launch for sm_<capability> and return Triton's result, specialized as for aligned tensors."""
    names = [p.name for p in launch.kernel.params]
    values = dict(zip(names, launch.arguments), **launch.constants)
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(names):
        value = values[name]
        if name in launch.constants or value is None:
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else launch.kernel.params[i].annotation_type \
            or ("i32" if -2**31 <= value < 2**31 else "i64")
        if isinstance(value, torch.Tensor) or value % 16 == 0 and not launch.kernel.params[i].do_not_specialize:
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32),
                          options={"num_warps": launch.num_warps, "enable_fp_fusion": False})


def usage(result):
    """Return (registers per thread, bytes of stack, where spilled registers go, bytes of shared memory)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        listing = subprocess.run([CUOBJDUMP, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", listing)
    registers, stack, local = map(int, found.groups())
    return registers, stack + local, result.metadata.shared


def vector_accesses(result):
    """Count the loads and stores of 16 bytes in PTX."""
    return [len(re.findall(pattern, result.asm["ptx"])) for pattern in (
        r"ld\.global[.\w:]*\.(?:v4\.b32|v2\.b64)", r"st\.global[.\w:]*\.(?:v4\.b32|v2\.b64)")]
