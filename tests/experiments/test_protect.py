"""A classifier of the digits behind a denoiser: what the command measures, and what it refuses."""

import json

import pytest
import torch

from cdn.errors import CDNError
from cdn.experiments import protect
from cdn.methods.smoothing.defences import SYSTEMS
from cdn.methods.smoothing.randomized import Randomized
from cdn_kernels import Noise

FAST = [
    "--device",
    "cpu",
    "--limit",
    "24",
    "--attack-steps",
    "4",
    "--draws",
    "4",
    "--n0",
    "5",
    "--n",
    "30",
    "--steps",
    "2",
]


def run(folder, classifier, out, *options):
    protect.main([str(folder), "--classifier", str(classifier), "--out", str(out), *FAST, *map(str, options)])
    return json.loads((out / "report.json").read_text())["results"]


def test_protection_withstands_what_fools_the_bare_classifier(digits_run, plain_run, tmp_path, capsys):
    results = run(digits_run, plain_run, tmp_path, "--radius", "1")
    assert list(results) == list(SYSTEMS)
    alone, denoised = results["alone"], results["denoised"]
    assert alone["clean"] > 0.9 and alone["attacked"] < 0.5 and alone["attacked"] == alone["transferred"]
    assert denoised["clean"] > 0.8 and denoised["transferred"] > alone["attacked"]
    assert denoised["attacked"] <= denoised["clean"]
    assert denoised["certified"]["0"] > alone["certified"]["0"]
    assert results["vote"]["certified"] is None and results["vote"]["clean"] > 0.7
    printed = capsys.readouterr().out
    assert "| alone " in printed and (tmp_path / "picture.png").exists() and (tmp_path / "images.png").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_only_some_systems(digits_run, plain_run, tmp_path):
    results = run(digits_run, plain_run, tmp_path, "--systems", "itself", "--radius", "0")
    assert list(results) == ["itself"] and results["itself"]["attacked"] == results["itself"]["clean"] > 0.9
    assert not (tmp_path / "images.png").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_what_cannot_be_is_refused(digits_run, plain_run, denoiser_run, tmp_path):
    with pytest.raises(CDNError, match="plain: expected a run that denoises, got a ResNet"):
        run(plain_run, plain_run, tmp_path)
    with pytest.raises(CDNError, match="denoiser: expected a run that classifies, got a DirectDenoiser"):
        run(digits_run, denoiser_run, tmp_path)
    with pytest.raises(CDNError, match="--systems vote: .* has no log-density"):
        run(denoiser_run, plain_run, tmp_path, "--systems", "vote")
    results = run(denoiser_run, plain_run, tmp_path, "--systems", "alone", "denoised")
    assert list(results) == ["alone", "denoised"]


def test_probabilities_are_averaged_over_draws_of_the_key():
    keys = []
    classify = lambda x, key: keys.append(key) or torch.tensor([[0.0, 1.0]]) * len(keys) + 1e4
    module = Randomized(classify, 2)
    values = module(torch.zeros(1), Noise(7))
    assert len(set(keys)) == 2 and {key.seed for key in keys} == {7}
    expected = torch.stack([torch.tensor([0.0, 1.0]).softmax(0), torch.tensor([0.0, 2.0]).softmax(0)]).mean(0)
    torch.testing.assert_close(values.exp()[0], expected)
    with pytest.raises(ValueError, match="draws: expected at least 1, got 0"):
        Randomized(classify, 0)
