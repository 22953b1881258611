"""Build the CPU library and the CUDA library, which are optional: plain PyTorch can do their work.

Each is one shared library with a plain C interface, loaded by ctypes, so it depends on neither Python's nor torch's
version. Environment variables decide: CDN_CPU=0 skips the one, which needs a C++17 compiler, and CDN_CUDA=0 the other,
which needs nvcc; 1 makes a failure fatal; unset tries and warns, or skips the CUDA library silently where there is no
nvcc. No GPU is needed, or looked for. CDN_CUDA_ARCHITECTURES names what to build for, as "90" or "80 90", instead of
what runs on all GPUs from compute capability 8.0.

A wheel that is published holds the CPU library alone (CDN_CUDA=0): impl="auto" chooses the CUDA library nowhere, Triton
does its work, and it has been measured on no GPU. Who has nvcc gets it from the source distribution. The CPU library is
for GCC and Clang, on x86-64 and ARM; elsewhere, as with MSVC, a wheel holds Python alone. It links with no OpenMP: it
borrows the threads of torch's (csrc/cpu/threads.cpp).
"""

import os
import runpy
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

FLAGS = [
    "-std=c++17",
    "-fvisibility=hidden",
    # One rounding per operation, so that every processor draws the same noise ...
    "-ffp-contract=off",
    # ... without errno and exception flags, which no one reads and which stop vectorization.
    "-fno-math-errno",
    "-fno-trapping-math",
]
# Python's own flags ask for debug information, which makes the library eight times as large.
if "-g" not in os.environ.get("CFLAGS", ""):
    FLAGS.append("-g0")
# Sanitizers do not get through the longest files with more than they ask for.
if "-O" not in os.environ.get("CFLAGS", ""):
    FLAGS.append("-O3")
OPTIONAL_FLAGS = [
    "-fopenmp-simd",  # for the pragma that says which loops to vectorize; it needs no runtime
    # GCC would split the paths of a minimum with a constant, and vectorize the two with a handful of blends.
    "-fno-tree-pre",
]
AVX512 = ["-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
VARIANTS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512bf16"],
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
# Minimal filtering without vectors is for tests only, and takes a compiler long.
TESTED_ONLY, QUICKLY = "winograd_scalar", ["-O1"]
# Random numbers are long chains of operations, which take less time in the order of another schedule.
NOISE_FLAGS = ["-fschedule-insns"]
CUDA = SimpleNamespace(**runpy.run_path("csrc/cuda/build.py"))
# Of what is built for, which need not be what is built on.
X86 = sysconfig.get_platform().endswith(("x86_64", "amd64"))


def sources():
    """List the C++ files for this processor: `name_avx2.cpp` is for x86 and gets the flags of AVX2."""
    # Those that take longest begin first.
    paths = sorted(Path("csrc/cpu").glob("*.cpp"), key=lambda path: (not path.stem.startswith("winograd"), path))
    return [str(p) for p in paths if X86 or variant(p) not in VARIANTS]


def variant(path):
    """Return what follows the last underscore of a file name."""
    return Path(path).stem.rpartition("_")[2]


class BuildLibrary(build_ext):
    """Compile every file of a library with its own flags and link them into cdn_kernels/_cpu.so or _cuda.so."""

    def get_ext_filename(self, fullname):
        """Return the path of a library, which names no version of Python."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext):
        """Build a library if the environment wants it and its compiler is there."""
        name = ext.name.rpartition("_")[2].upper()
        wanted = os.environ.get(f"CDN_{name}")
        if wanted == "0" or (name == "CUDA" and wanted != "1" and not CUDA.find_nvcc()):
            return
        try:
            self.build_cuda(ext) if name == "CUDA" else self.build_cpu(ext)
        except (BaseError, CCompilerError, OSError, subprocess.CalledProcessError) as error:
            if wanted == "1":
                raise
            print(f"warning: the {name} kernels were not built, others take their place: {error}")

    def build_cuda(self, ext):
        """Build the CUDA library, by csrc/cuda/build.py."""
        CUDA.build(Path(self.get_ext_fullpath(ext.name)), CUDA.named_architectures())

    def build_cpu(self, ext):
        """Build the CPU library, with as many compilers at a time as there are cores."""
        if self.compiler.compiler_type == "msvc":
            raise CompileError("they are written for GCC and Clang")
        macros = [("CDN_X86", None)] if X86 else []
        common = FLAGS + list(filter(self.accepts, OPTIONAL_FLAGS))
        noise = list(filter(self.accepts, NOISE_FLAGS))

        def compiled(source):
            name = Path(source).stem
            own = VARIANTS.get(variant(source), []) + (noise if name.startswith("noise_") else [])
            own += QUICKLY if name == TESTED_ONLY else []
            return self.compiler.compile([source], self.build_temp, macros, extra_postargs=common + own)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(chain.from_iterable(pool.map(compiled, ext.sources)))
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), target_lang="c++")

    def accepts(self, flag):
        """Tell whether the compiler knows a flag."""
        with tempfile.TemporaryDirectory() as folder:
            command = [*self.compiler.compiler_so, flag, "-c", "-x", "c++", os.devnull, "-o", f"{folder}/probe.o"]
            return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


class Wheel(bdist_wheel):
    """Tag the wheel for the platform but for no Python version: the library does not link with Python."""

    def get_tag(self):
        """Return the tags of Python, its interface and the platform."""
        return "py3", "none", super().get_tag()[2]


def library(name, files):
    """Describe the library cdn_kernels/_NAME.so."""
    return Extension(
        f"cdn_kernels._{name}",
        files,
        optional=os.environ.get(f"CDN_{name.upper()}") != "1",
        depends=[str(p) for p in sorted(Path("csrc").rglob("*.h"))],
    )


setup(
    ext_modules=[library("cpu", sources()), library("cuda", sorted(map(str, Path("csrc/cuda").glob("*.cu"))))],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
