"""Classification by denoising error on the digits: what the command measures, and what it refuses."""

import json

import pytest

from cdn.errors import CDNError
from cdn.experiments import denoising_classifier

FAST = [
    "--device",
    "cpu",
    "--limit",
    "24",
    "--nodes",
    "3",
    "--draws",
    "3",
    "--attacked",
    "8",
    "--attack-steps",
    "2",
    "--attack-nodes",
    "2",
]


def run(folder, out, *options):
    denoising_classifier.main([str(folder), "--out", str(out), *FAST, *options])
    return json.loads((out / "report.json").read_text())["results"]


def test_denoising_errors_tell_digits(digits_run, tmp_path, capsys):
    results = run(digits_run, tmp_path, "--radius", "1")
    softmax, vote, error = (results["accuracy"][name] for name in ("softmax", "vote", "denoising error"))
    assert list(softmax) == ["clean", "σ = 25/255", "transferred", "attacked", "either attack"]
    assert softmax["clean"] > 0.9 and vote["clean"] > 0.6 and error["clean"] > 0.35
    assert softmax["either attack"] == softmax["attacked"] == softmax["transferred"] < 0.5
    assert all(shares["either attack"] <= min(shares["attacked"], shares["transferred"]) for shares in (vote, error))
    assert results["by_draws"]["draws"] == [1, 2, 3] and results["by_draws"]["accuracy"][-1] == error["clean"]
    # Little noise leaves the softmax what it sees, but no class any advantage in taking it away.
    by_level = results["by_level"]
    assert by_level["softmax"][0] > 0.9 > 0.5 > by_level["denoising error"][0]
    assert max(by_level["denoising error"]) > 0.3
    assert "| denoising error" in capsys.readouterr().out and (tmp_path / "picture.png").exists()


def test_a_run_without_a_density_is_refused(plain_run, tmp_path):
    with pytest.raises(CDNError, match="expected a run that models a density and classifies, got a ResNet"):
        run(plain_run, tmp_path / "out")
