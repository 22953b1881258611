"""What runs on GPUs only, on a GPU that is not there: no step mixes devices, and every command finds its way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests/pretend_gpu"
pytestmark = [
    pytest.mark.skipif(bool(torch.version.cuda or torch.version.hip), reason="this torch knows real GPUs"),
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which(os.environ.get("CXX", "g++")) is None,
        reason="the device is compiled, on Linux, with a C++ compiler",
    ),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that runs Python with the device, and returns what it printed."""
    folder = tmp_path_factory.mktemp("device")
    environment = {**os.environ, "PRETEND_GPU": str(folder), "PYTHONPATH": os.pathsep.join([str(FOLDER), str(ROOT)])}

    def run(*words):
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done.stdout

    return run


def test_devices_do_not_mix(run):
    assert "same device" in run(
        "-c",
        """if True:
        import pretend_gpu, torch
        x = torch.arange(6.0, device="cuda").view(2, 3)
        assert x.is_cuda and (x.t() @ x).is_cuda and float(x.sum()) == 15 and x.cpu().tolist()[1] == [3, 4, 5]
        try:
            x + torch.ones(3)
        except RuntimeError as error:
            print(error)""",
    )


def test_steps_are_those_that_graphs_replay(run):
    assert " passed" in run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "pretend_gpu",
        "-p",
        "no:cacheprovider",
        "tests/training/test_on_gpu.py",
        "-k",
        "not cannot_be_recorded",
    )


def test_every_pass_can_be_measured(run):
    assert "32 passed" in run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "pretend_gpu",
        "-p",
        "no:cacheprovider",
        "benchmarks/test_passes.py",
        "--benchmark-only",
        "--smoke",
        "--device",
        "cuda",
    )


def test_commands_work_on_the_device(run, tmp_path):
    command = lambda *words: run(
        "-c",
        "import pretend_gpu, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__')",
        *words,
    )
    assert "on a GPU that is not there" in command("cdn_kernels.info")
    folder = str(tmp_path / "run")
    printed = command(
        "cdn.train",
        "--out",
        folder,
        "--fused",
        "--precision",
        "bf16",
        "--steps",
        "12",
        "--width",
        "8",
        "--batch-size",
        "32",
        "--evaluations",
        "2",
        "--device",
        "cuda",
    )
    assert "steps of 32 on cuda" in printed and "without a CUDA graph" not in printed
    assert "denoising loss" in command("cdn.evaluate", folder)
    assert "eigenvectors" in command("cdn.experiments.jacobian", folder)
