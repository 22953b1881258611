"""The CPU library on ARM: cross-compiled, run by qemu, and compared with this processor's, call by call."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cdn_kernels.backends import cpu

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).parent / "processors" / "record.cpp"
CROSS, QEMU, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
BUILD = {
    "_PYTHON_HOST_PLATFORM": "linux-aarch64",
    "CC": "aarch64-linux-gnu-gcc",
    "CXX": CROSS,
    "LDSHARED": "aarch64-linux-gnu-gcc -shared",
    "LDCXXSHARED": f"{CROSS} -shared",
    "CDN_CPU": "1",
    "CDN_CUDA": "0",
}
# Units in the last place of the largest number of a result: with and without fused multiply-adds.
MARGIN = 4
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-8, "float16": 2.0**-11}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING)),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares ARM with x86-64"),
    pytest.mark.skipif(
        not (shutil.which(CROSS) and shutil.which(QEMU) and Path(SYSROOT).exists()),
        reason="needs g++-aarch64-linux-gnu and qemu-user",
    ),
]


def record(compiler, library, folder, runner=(), capability="scalar"):
    """Run every kernel of a library; return its results as (name, kind, type, numbers)."""
    program = folder / "record"
    command = [compiler, "-std=c++17", "-Wall", "-Werror", RECORD, library, f"-Wl,-rpath,{library.parent}"]
    subprocess.run([*map(str, command), "-o", str(program)], check=True)
    arguments = [*runner, str(program), str(cpu.CAPABILITIES.index(capability))]
    lines = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return [(*line.split()[:3], [float.fromhex(number) for number in line.split()[3:]]) for line in lines]


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm")
    command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={folder}", f"--build-temp={folder}/objects"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | BUILD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return record(CROSS, folder / "cdn_kernels" / "_cpu.so", folder, [QEMU, "-L", SYSROOT])


@pytest.mark.parametrize("capability", cpu.USABLE)
def test_arm_computes_what_this_processor_does(on_arm, tmp_path, capability):
    here = record("g++", Path(cpu.LIBRARY._name), tmp_path, capability=capability)
    assert len(on_arm) == len(here) > 250
    for (*what, there), (*expected, numbers) in zip(on_arm, here, strict=True):
        assert what == expected and len(there) == len(numbers) > 0
        _, kind, dtype = what
        if kind == "exact":
            assert there == numbers, what
            continue
        bound = MARGIN * EPSILON[dtype] * max(map(abs, numbers))
        assert all(abs(a - b) <= bound for a, b in zip(there, numbers, strict=True)), what
