"""The CUDA library in two forms: compiled by nvcc, and for the processor, by tests/kernels/cuda_emulation."""

import os
import re
import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int, c_int64
from pathlib import Path

import torch

from cdn_kernels.backends import cuda
from tests.kernels import build_cache

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
EMULATION = Path(__file__).parent / "cuda_emulation"
BUILT = ROOT / "cdn_kernels/_cuda.so"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
BUILD = runpy.run_path(ROOT / "csrc/cuda/build.py")
NVCC = BUILD["find_nvcc"]()
H200 = (227 << 10, 132)  # bytes of shared memory of a block, multiprocessors
# Relative errors of GELU, see csrc/gelu.h: of the exponential for 16 bits, of the division otherwise.
GELU_ERRORS = {torch.bfloat16: 2.0**-19, torch.float16: 2.0**-19, torch.float32: 2.0**-21, torch.float64: 0.0}
CPUINFO = Path("/proc/cpuinfo")
FLAGS = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-U_FORTIFY_SOURCE",  # which forbids to jump between stacks
    "-DCDN_CUDA_BUILD=emulated:",
    f"-I{EMULATION}",
    f"-I{ROOT / 'csrc/cuda'}",
]


def contraction(source):
    """Return the flags that let products and sums of a source be one operation where nvcc makes them one."""
    if "-fmad=false" in BUILD["OWN_FLAGS"].get(source.stem, []):
        return ["-ffp-contract=off"]
    # At -O1 GCC makes them one only if told to try what takes long.
    has_one = re.search(r"^flags\b.*\bfma\b", CPUINFO.read_text(), re.MULTILINE)
    return ["-ffp-contract=fast", "-fexpensive-optimizations", *(["-mfma"] if has_one else [])]


def files_of(root, *patterns):
    return [file for pattern in patterns for file in root.glob(pattern) if file.is_file()]


def version(compiler):
    """Return what a compiler says that it is."""
    return subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout


def emulated_key(root=ROOT):
    """Return the name of the library for the processor that the sources below a root make."""
    files = files_of(root, "csrc/*.h", "csrc/cuda/*", "tests/kernels/cuda_emulation/*")
    flags = FLAGS, [contraction(source) for source in SOURCES]
    return build_cache.key(root, files, COMPILER, version(COMPILER), flags)


def emulated(folder):
    """Return the library for the processor, with the functions of emulation.cpp; a folder keeps it for the next run."""
    path = build_cache.once(folder, f"emulated-{emulated_key()}.so", build_emulated)
    library, missing = cuda.load(path)
    assert missing is None, missing
    library.emulate.argtypes = (c_int, c_int, c_int)
    library.plan.argtypes = (c_int, c_int, c_int, c_int, c_int64, c_int, c_int, c_int, c_int)
    return library


def build_emulated(folder):
    """Build the sources of the library for the processor into a folder."""

    def compiled(source):
        target = folder / f"{source.name}.o"
        subprocess.run([COMPILER, *FLAGS, *contraction(source), "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*SOURCES, EMULATION / "emulation.cpp"]))
    path = folder / "emulated.so"
    subprocess.run([COMPILER, "-shared", *objects, "-o", path], check=True)
    return path


def compiled(folder):
    """Return the path of the library for all GPUs: the installed one; if it is older than its sources, one in a folder.

    Raises:
        subprocess.CalledProcessError: nvcc refuses the sources.
    """
    sources = files_of(ROOT, "csrc/*.h", "csrc/cuda/*")
    library = cuda.load(BUILT)[0]
    if library and BUILT.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        if {"sm_80", "sm_90a"} <= set(library.cdn_cuda_build().decode().split()):
            return BUILT

    def build(unfinished):
        BUILD["build"](unfinished / "_cuda.so")
        return unfinished / "_cuda.so"

    key = build_cache.key(ROOT, sources, NVCC, version(NVCC), os.environ.get("CXX"))
    return build_cache.once(folder, f"cuda-{key}.so", build)


def cuobjdump():
    """Return the path of cuobjdump, which comes with CUDA or else with triton; None if it is nowhere."""
    found = shutil.which("cuobjdump")
    if found is None and NVCC:
        found = shutil.which("cuobjdump", path=Path(NVCC).parent)
    if found is None:
        try:
            import triton
        except ImportError:
            return None
        found = shutil.which("cuobjdump", path=Path(triton.__file__).parent / "backends/nvidia/bin")
    return found


def inspect(library, *options):
    """Return what cuobjdump says of a library."""
    return subprocess.run([cuobjdump(), *options, library], check=True, capture_output=True, text=True).stdout


def usage(library, architecture):
    """Return {mangled name: (registers, bytes of stack and of local memory)} of the kernels for an architecture."""
    listing = inspect(library, "-res-usage", "-arch", architecture)
    rows = re.findall(r"Function (\S+):\n\s*REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", listing)
    return {name: (int(registers), int(stack) + int(local)) for name, registers, stack, local in rows}


def machine_code(library, architecture, kernels):
    """Return {mangled name: SASS} of some kernels for an architecture."""
    parts = re.split(r"Function : (\S+)\n", inspect(library, "-sass", "-arch", architecture, "-fun", ",".join(kernels)))
    return dict(zip(parts[1::2], parts[2::2]))


def portable_code(library):
    """Return {mangled name: PTX} of the kernels, for the newest architecture."""
    parts = re.split(r"\.entry (\w+)\(", inspect(library, "-ptx"))
    return dict(zip(parts[1::2], parts[2::2]))
