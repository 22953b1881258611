"""Build the CPU library, which is optional: without a C++17 compiler, plain PyTorch does its work.

It is one shared library with a plain C interface, loaded by ctypes, so it depends on neither Python's nor
torch's version. The environment variable CDN_CPU decides: 0 skips it, 1 makes a failure fatal, unset tries
and warns.
"""
import os
import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

FLAGS = ["-O3", "-std=c++17", "-fvisibility=hidden", "-fopenmp-simd",
         # One rounding per operation, so that every processor draws the same noise ...
         "-ffp-contract=off",
         # ... without errno and exception flags, which no one reads and which stop vectorization.
         "-fno-math-errno", "-fno-trapping-math"]
# GCC would split the paths of a minimum with a constant, and vectorize the two with a handful of blends.
GCC_FLAGS = ["-fno-tree-pre"]
AVX512 = ["-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
VARIANTS = {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"],
            "amx": [*AVX512, "-mamx-tile", "-mamx-bf16"]}
# Random numbers are long chains of operations, which take less time in the order of another schedule.
NOISE_FLAGS = ["-fschedule-insns"]
X86 = platform.machine().lower() in ("x86_64", "amd64")


def sources():
    """List the C++ files for this processor: `name_avx2.cpp` is for x86 and gets the flags of AVX2."""
    paths = sorted(Path("csrc/cpu").glob("*.cpp"))
    return [str(p) for p in paths if X86 or variant(p) not in VARIANTS]


def variant(path):
    """Return what follows the last underscore of a file name."""
    return Path(path).stem.rpartition("_")[2]


class BuildLibrary(build_ext):
    """Compile every file with its own flags and link them into cdn_kernels/_cpu.so."""

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext):
        if os.environ.get("CDN_CPU") == "0":
            return
        try:
            self.build_library(ext)
        except (BaseError, CCompilerError, OSError) as error:
            if os.environ.get("CDN_CPU") == "1":
                raise
            print(f"warning: the CPU kernels were not built, PyTorch's operations take their place: {error}")

    def build_library(self, ext):
        macros = [("CDN_X86", None)] if X86 else []
        threading = list(filter(self.accepts, ["-fopenmp"]))  # without it: one thread
        common = FLAGS + list(filter(self.accepts, GCC_FLAGS)) + threading
        noise = list(filter(self.accepts, NOISE_FLAGS))

        def compiled(source):
            own = VARIANTS.get(variant(source), []) + (noise if Path(source).stem.startswith("noise_") else [])
            return self.compiler.compile([source], self.build_temp, macros, extra_postargs=common + own)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = sum(pool.map(compiled, ext.sources), [])
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), extra_postargs=threading,
                                         target_lang="c++")

    def accepts(self, flag):
        """Tell whether the compiler knows a flag, and finds the libraries that it asks for."""
        with tempfile.TemporaryDirectory() as folder:
            command = [*self.compiler.compiler_so, flag, "-shared", "-x", "c++", os.devnull, "-o", f"{folder}/probe.so"]
            return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


class Wheel(bdist_wheel):
    """Tag the wheel for the platform but for no Python version: the library does not link with Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("cdn_kernels._cpu", sources(), optional=os.environ.get("CDN_CPU") != "1",
                           depends=[str(p) for p in sorted(Path("csrc").rglob("*.h"))])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
