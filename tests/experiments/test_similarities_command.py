"""Classification by similarity on the digits: what the command measures, and what it refuses."""

import json

import pytest
import torch

from cdn.errors import CDNError
from cdn.experiments import similarities
from cdn.methods.distances.by_similarity import NAMES
from cdn.methods.distances.dissimilarity import shifted

FAST = [
    "--device",
    "cpu",
    "--limit",
    "24",
    "--train-steps",
    "200",
    "--width",
    "48",
    "--steps",
    "8",
    "--nodes",
    "2",
    "--examples",
    "8",
    "--batch-size",
    "24",
]


def run(folder, out, *options):
    similarities.main([str(folder), "--out", str(out), *FAST, *map(str, options)])
    return json.loads((out / "report.json").read_text())["results"]


def test_all_similarities_tell_digits(digits_run, tmp_path, capsys):
    results = run(digits_run, tmp_path, "--search", "pixels", "SSIM")
    ways = results["accuracy"]
    assert list(ways) == ["judged", "searched", "neighbour"] and list(ways["searched"]) == ["pixels", "SSIM"]
    for way in ("judged", "neighbour"):
        assert list(ways[way]) == list(NAMES)
        assert all(shares["clean"] > 0.6 for shares in ways[way].values())
    assert ways["searched"]["pixels"]["clean"] > 0.8
    # Moved by an eighth of its width, a digit is far from all others in pixels; a classifier's features bear more.
    assert ways["neighbour"]["pixels"]["shifted"] < ways["neighbour"]["pixels"]["clean"]
    assert "| information" in capsys.readouterr().out
    assert (tmp_path / "picture.png").exists() and (tmp_path / "reconstructions.png").exists()


def test_a_shift_is_by_one_pixel():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert torch.equal(shifted(x)[0, 0], torch.tensor([[0.0, 0.0, 1.0], [3.0, 3.0, 4.0]]))


def test_what_cannot_be_is_refused(digits_run, plain_run, denoiser_run, tmp_path):
    with pytest.raises(CDNError, match="expected a run that models a density, got a ResNet"):
        run(plain_run, tmp_path / "out")
    with pytest.raises(CDNError, match="denoiser: expected a run that classifies, got a DirectDenoiser"):
        run(digits_run, tmp_path / "out", "--classifier", denoiser_run)
    with pytest.raises(CDNError, match="--low: expected less than 1, the highest of the training, got 1"):
        run(digits_run, tmp_path / "out", "--low", 1)
    with pytest.raises(CDNError, match="expected images of every class, found none of class"):
        run(digits_run, tmp_path / "out", "--train-images", 3)
