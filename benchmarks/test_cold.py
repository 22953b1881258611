"""What is paid once: importing, the first step of a process, building; and what every call of an operation costs."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from benchmarks.harness.checkout import ROOT
from benchmarks.operations import OPERATIONS, ORDERS, Sweep

FIRST_STEP = """
import torch
from benchmarks.steps import Problem, Step
torch.set_num_threads({threads})
Step(Problem(width=32, batch=16, device={device!r}), {impl!r})()
"""


def _python(code):
    return lambda: subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.no_smoke
def test_import(paired):
    """A process that imports the kernels and ends, against one that imports torch."""
    paired(
        "a process: import cdn_kernels",
        ("this library", _python("import cdn_kernels")),
        {"(import torch)": _python("import torch")},
        memory=False,
        operation="import",
    )


@pytest.mark.full
def test_first_step(paired, settings):
    """A process that does one joint step: loading, compiling if any, and what allocators and libraries do first."""
    code = lambda impl: FIRST_STEP.format(threads=torch.get_num_threads(), device=settings.device, impl=impl)
    paired(
        "a process: one joint step, width 32, batch 16",
        ("this library", _python(code(settings.library))),
        {"eager, channels last": _python(code("reference"))},
        memory=False,
        operation="first step",
    )


@pytest.mark.parametrize("order", ORDERS)
def test_overhead(paired, settings, order):
    """An operation on a single pixel: nothing but the cost of calling it."""
    inputs = [torch.randn(1, 8, 1, 1, device=settings.device), torch.randn(8, 8, 3, 3, device=settings.device)]
    operation = OPERATIONS["conv + GELU"]
    calls = 100

    def many(function):
        sweep = Sweep(function, inputs, order, torch.channels_last)
        return lambda: [sweep() for _ in range(calls)]

    paired(
        f"{calls} calls of conv + GELU on a pixel, {order}",
        ("this library", many(lambda *inputs: operation.library(*inputs, impl=settings.library))),
        {"eager": many(operation.plain)},
        memory=False,
        operation="overhead",
        order=order,
        calls=calls,
    )


@pytest.mark.full
def test_build(paired):
    """Compiling the extension from nothing."""

    def build():
        with tempfile.TemporaryDirectory() as folder:
            for name in ("csrc", "cdn_kernels", "cdn"):
                shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
            for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(ROOT / name, folder)
            subprocess.run(
                [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
                cwd=folder,
                check=True,
                capture_output=True,
                env={"CDN_CPU": "1", "PATH": "/usr/bin:/bin"},
            )

    paired("building the extension", ("this library", build), {}, memory=False, rounds=1, operation="build")
