"""The build: what it installs, and life without a compiler."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from cdn_kernels import Noise, info, sample_noise
from cdn_kernels.backends import cpu, dispatch
from tests.kernels.fresh import printed_by

ROOT = Path(__file__).parents[2]
BROKEN = {"CC": "false", "CXX": "false"}  # compilers that always fail

USE = """
import sys, warnings, torch
import cdn_kernels
assert cdn_kernels.__file__.startswith(sys.argv[1]), cdn_kernels.__file__
x, key = torch.ones(2, 3), cdn_kernels.Noise(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        y, _ = cdn_kernels.sample_noise(x, 0.5, key)
assert torch.equal(y, cdn_kernels.sample_noise(x, 0.5, key, impl="reference")[0])
assert [str(w.message).startswith("cdn_kernels runs on plain PyTorch") for w in caught] == [True], caught
try:
    cdn_kernels.sample_noise(x, 0.5, key, impl="cpu")
except RuntimeError as error:
    assert "not built" in str(error)
else:
    raise AssertionError("impl='cpu' ran without its library")
"""


def copy_tree(folder):
    """Copy what the build needs, without anything built before."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in ("cdn", "cdn_kernels", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def pip(*arguments, **variables):
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-build-isolation", "-q"]
    return subprocess.run(command, env=os.environ | {"CDN_CUDA": "0"} | variables, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"CDN_CPU": "0"}, BROKEN], ids=["skipped", "broken"])
def test_installs_and_runs_without_the_library(tmp_path, variables):
    tree, site = copy_tree(tmp_path / "tree"), tmp_path / "site"
    done = pip("install", tree, "--target", site, **variables)
    assert done.returncode == 0, done.stderr
    assert not list(site.rglob("*.so"))
    subprocess.run(
        [sys.executable, "-c", USE, str(site)], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}
    )


@pytest.mark.slow
def test_a_demanded_library_that_cannot_be_built_stops_the_install(tmp_path):
    tree = copy_tree(tmp_path / "tree")
    done = pip("install", tree, "--target", tmp_path / "site", CDN_CPU="1", **BROKEN)
    assert done.returncode != 0


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_fits_every_python(tmp_path):
    done = pip("wheel", copy_tree(tmp_path / "tree"), "-w", tmp_path, CDN_CPU="1")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    assert {"cdn_kernels/_cpu.so", "cdn_kernels/backends/measured.json"} <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
@pytest.mark.parametrize("wanted, expected", [("scalar", "scalar"), ("unknown", cpu.CAPABILITY)])
def test_the_environment_lowers_the_capability(wanted, expected):
    code = "from cdn_kernels.backends import cpu; print(cpu.CAPABILITY)"
    assert printed_by(code, CDN_CPU_CAPABILITY=wanted).strip() == expected


@pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
@pytest.mark.parametrize("wanted", cpu.CAPABILITIES)
def test_a_capability_that_is_asked_for_excludes_direct_convolutions(wanted):
    code = (
        "import torch; from cdn_kernels.backends import cpu; from cdn_kernels import conv2d_gelu, info; "
        "x = torch.ones(1, 32, 4, 4).bfloat16().contiguous(memory_format=torch.channels_last); "
        "conv2d_gelu(x, torch.ones(32, 32, 3, 3).bfloat16(), impl='cpu'); info.main(); print(cpu.ENGINE)"
    )
    printed = printed_by(code, CDN_CPU_CAPABILITY=wanted)
    assert "those of torch" in printed and "AMX, else" not in printed and printed.strip().endswith("None")


def test_a_library_that_is_missing_or_foreign_is_explained(tmp_path):
    assert "not built" in cpu.load(tmp_path / "none.so")[1]
    (tmp_path / "text.so").write_text("not a library")
    assert "could not be loaded" in cpu.load(tmp_path / "text.so")[1]


def test_auto_falls_back_and_warns_once(monkeypatch):
    monkeypatch.setattr(cpu, "MISSING", "it was not built")
    dispatch._warn_slow.cache_clear()
    x = torch.ones(2, 3)
    with pytest.warns(UserWarning, match="plain PyTorch operations: it was not built") as caught:
        for _ in range(3):
            y, _ = sample_noise(x, 0.5, Noise(1))
    assert len(caught) == 1
    assert torch.equal(y, sample_noise(x, 0.5, Noise(1), impl="reference")[0])
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run: it was not built"):
        sample_noise(x, 0.5, Noise(1), impl="cpu")
    with pytest.raises(RuntimeError, match="it was not built"):
        dispatch.fused_backends(torch.device("cpu"))
    assert {backend for _, backend in info.describe("cpu")} == {"reference"}
    dispatch._warn_slow.cache_clear()


def test_the_table_of_operations(capsys):
    assert dict(info.describe("reference")) == dict.fromkeys(dispatch.OPERATIONS, "reference")
    if not cpu.MISSING:
        assert ("sample_noise", "cpu") in info.describe("cpu")
        assert {backend for _, backend in info.describe()} == {"cpu"}
        assert set(dispatch.fused_backends(torch.device("cpu")).values()) == {"cpu"}
    with pytest.raises(RuntimeError, match="no kernels for devices of type meta"):
        dispatch.fused_backends(torch.device("meta"))
    with pytest.raises(ValueError, match="impl must be one of"):
        info.describe("magic")
    info.main()
    assert "operation" in capsys.readouterr().out
