"""Threads of the CPU library: those of torch's OpenMP runtime, and life without one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cdn_kernels
from cdn_kernels import info
from cdn_kernels.backends import cpu, dispatch, openmp

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
needs_library = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="lists what a process has loaded by /proc")

PROCESS = """
import json, os, re, torch
torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
if {torch_first}:
    torch.ones(1 << 20).exp_()
import cdn_kernels
from cdn_kernels.backends import cpu
for _ in range(2):
    cdn_kernels.sample_noise(torch.ones(64, 3, 32, 32), 0.5, cdn_kernels.Noise(1), impl="cpu")
ours = len(os.listdir("/proc/self/task"))
torch.ones(1 << 20).exp_()
maps = {{line.split()[-1] for line in open("/proc/self/maps") if re.search(r"/lib(g|i|)omp[^/]*$", line)}}
print(json.dumps([sorted(maps), before, ours, len(os.listdir("/proc/self/task")), cpu.THREADS]))
"""


@needs_library
@needs_proc
@pytest.mark.parametrize("torch_first", [True, False], ids=["after torch's threads", "before torch's threads"])
def test_a_process_has_one_runtime_and_one_pool_of_threads(torch_first):
    command = [sys.executable, "-c", PROCESS.format(torch_first=torch_first)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "3"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runtimes, before, ours, both, source = json.loads(done.stdout)
    assert len(runtimes) == 1, runtimes
    assert source == "torch's OpenMP"
    assert both == ours == before + 2


@needs_library
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_library_links_with_no_runtime():
    listed = subprocess.run(["readelf", "-d", cpu.LIBRARY._name], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in listed and "omp" not in listed


def noise(threads):
    y = torch.empty(64, 3, 32, 33)
    cpu.add_noise(None, None, y, 1, 2, threads=threads)
    return y


@needs_library
def test_without_a_runtime_all_parts_run_on_the_calling_thread(tmp_path, monkeypatch):
    expected = noise(4)
    own = tmp_path / "own.so"  # another copy, with threads of its own choice
    shutil.copy(cpu.LIBRARY._name, own)
    library, missing = cpu.load(own)
    assert missing is None
    monkeypatch.setattr(cpu, "LIBRARY", library)
    assert torch.equal(noise(4), expected) and torch.equal(noise(1), expected)
    library.cdn_use_openmp(*openmp.find()[1])
    assert torch.equal(noise(4), expected) and torch.equal(noise(7), expected)


@needs_library
def test_parts_run_inside_a_team_of_another(monkeypatch):
    """A smaller team than was asked for runs all parts."""
    import ctypes

    calls = []
    alone = lambda result: ctypes.CFUNCTYPE(ctypes.c_int)(lambda: calls.append(result) or result)
    functions = [alone(0), alone(1)]
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(
        lambda function, data, threads, flags: work(function)(data)
    )
    expected = noise(1)
    try:
        cpu.LIBRARY.cdn_use_openmp(*(ctypes.cast(function, ctypes.c_void_p) for function in (parallel, *functions)))
        assert torch.equal(noise(3), expected)
    finally:
        cpu.LIBRARY.cdn_use_openmp(*(cpu._FUNCTIONS or [None] * 3))
    assert sorted(calls) == [0, 1]


def test_the_system_s_runtime_stands_in_for_torch_s(monkeypatch):
    """Whatever is there is taken, in order; what is no runtime is passed over."""
    where, functions = openmp.find()
    assert where and all(function.value for function in functions)
    libc = "libc.so.6" if sys.platform == "linux" else None
    places = [("no library", "/no/such/library.so"), ("no runtime", libc), *openmp._places()]
    monkeypatch.setattr(openmp, "_places", lambda: places)
    assert [f.value for f in openmp.find()[1]] == [f.value for f in functions]
    monkeypatch.setattr(openmp, "_places", lambda: places[:1])
    assert openmp.find() is None


def test_a_torch_without_the_private_name_is_borne(monkeypatch):
    names = [name for _, name in openmp._places()]
    assert torch._C.__file__ in names and names[-len(openmp.SYSTEM) :] == list(openmp.SYSTEM)
    monkeypatch.setattr(openmp, "torch", object())
    assert [name for _, name in openmp._places()] == [None, *openmp.SYSTEM]


@needs_library
def test_one_thread_of_ours_is_not_preferred_to_many_of_torch_s(monkeypatch, capsys):
    monkeypatch.setattr(cpu, "THREADS", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    dispatch._warn_slow.cache_clear()
    u = torch.ones(4)
    with pytest.warns(UserWarning, match="plain PyTorch operations: no OpenMP runtime was found, .* torch has 4"):
        assert dispatch.resolve("gelu", "auto", CPU, u.dtype) == "reference"
    with pytest.raises(RuntimeError, match="one thread where torch has 4; impl='cpu' uses it all the same"):
        dispatch.fused_backends(CPU)
    assert dispatch.resolve("gelu", "cpu", CPU, u.dtype) == "cpu"
    assert set(dispatch.fused_backends(CPU, "cpu").values()) == {"cpu"}
    assert torch.equal(cdn_kernels.gelu(u, impl="cpu"), cpu_gelu(u))
    assert {backend for _, backend in info.describe()} == {"reference"}
    assert {backend for _, backend in info.describe("cpu")} == {"cpu"}
    info.main()
    assert "threads: no OpenMP runtime was found" in capsys.readouterr().out
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert dispatch.resolve("gelu", "auto", CPU, u.dtype) == "cpu"
    info.main()
    assert "threads: one" in capsys.readouterr().out
    dispatch._warn_slow.cache_clear()


def cpu_gelu(u):
    out = torch.empty_like(u)
    cpu.gelu(0, u, None, None, out, None, threads=1)
    return out
