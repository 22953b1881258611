"""Files of every released version are read, and say what they said then; see tests/frozen/freeze.py."""

import json
import shutil

import pytest
import safetensors.torch
import torch

import cdn
import cdn_kernels
from cdn.commands import train
from cdn.methods.synthesis.generators import load_generators
from cdn.run_folder.names import STATE
from cdn.run_folder.state import load_state
from tests.frozen import freeze

VERSIONS = sorted(path for path in freeze.FOLDER.iterdir() if (path / freeze.EXPECTED).exists())
RUNS = [
    pytest.param(run, id=f"{run.parent.name} {run.name}")
    for v in VERSIONS
    for run in sorted(v.iterdir())
    if run.is_dir()
]
STOPPED = [case for case in RUNS if (case.values[0] / STATE).exists()]


def expected(run, resumed=False):
    """Return what a run gave when it was written, by name."""
    everything = safetensors.torch.load_file(run.parent / freeze.EXPECTED)
    of_run = {key.removeprefix(f"{run.name}."): v for key, v in everything.items() if key.startswith(f"{run.name}.")}
    ending = ".resumed" if resumed else ""
    return {key.removesuffix(ending): v for key, v in of_run.items() if key.endswith(".resumed") == resumed}


def assert_says(model, wanted, rtol=1e-4, atol=1e-5):
    found = freeze.answers(model)
    assert found.keys() == wanted.keys() and found
    for name in found:  # another processor, or version of torch, may add in another order
        torch.testing.assert_close(found[name], wanted[name], rtol=rtol, atol=atol)


def test_all_kinds_of_files_are_frozen():
    assert VERSIONS and {case.values[0].name for case in RUNS} == set(freeze.RUNS)
    assert {case.values[0].name for case in STOPPED} == set(freeze.STOPPED)


@pytest.mark.parametrize("run", RUNS)
def test_models_say_what_they_said(run):
    assert_says(cdn.load(run), expected(run))


@pytest.mark.parametrize("run", STOPPED)
def test_stopped_runs_go_on_to_the_same_end(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    assert load_state(copy)["step"] == freeze.STOPPED_AFTER
    assert train.main(["--resume", str(copy)]) is None
    # Muon rounded its steps to bfloat16 in 0.1.0, on CPUs too.
    assert_says(cdn.load(copy), expected(run, resumed=True), rtol=1e-3, atol=1e-4)
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(2, freeze.STEPS + 1, 2))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_generators_make_what_they_made(version):
    generators, settings = load_generators(version / freeze.GENERATORS)
    assert settings == dict(steps=0)
    wanted = safetensors.torch.load_file(version / freeze.EXPECTED)["generators.reconstructed"]
    torch.testing.assert_close(freeze.reconstructed(generators), wanted, rtol=1e-4, atol=1e-5)


def test_what_was_released_is_not_made_again(monkeypatch):
    monkeypatch.setattr(cdn_kernels, "__version__", VERSIONS[0].name)
    with pytest.raises(SystemExit, match="is there already"):
        freeze.main()
