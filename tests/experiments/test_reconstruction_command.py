"""Classifying the digits by reconstruction: what the command measures, keeps, and refuses."""

import json

import pytest

from cdn.errors import CDNError
from cdn.experiments import reconstruction
from cdn.methods.synthesis import load_generators

FAST = [
    "--device",
    "cpu",
    "--limit",
    "60",
    "--attack-images",
    "8",
    "--attack-steps",
    "4",
    "--width",
    "64",
    "--search-steps",
    "6",
    "--starts",
    "1",
]


def run(folder, out, *options):
    reconstruction.main([str(folder), "--out", str(out), *FAST, *map(str, options)])
    return json.loads((out / "report.json").read_text())["results"]


def test_digits_are_classified_by_reconstruction(digits_run, tmp_path, capsys):
    results = run(digits_run, tmp_path, "--fit-steps", 300)
    assert results["clean"] > 0.93 and results["own_clean"] > 0.93 and results["calibration_loss"] < 0.4
    assert results["images"] == 60 and results["attacked"] == 8 and results["generators"]["images"] == 1237
    for shares in (*results["robust"]["reconstruction"].values(), *results["robust"]["own"].values()):
        assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0]
    # What withstands for certain is less than what was not found.
    for key in ("latent_descent", "bound_above"):
        assert results[key] == sorted(results[key], reverse=True)
    for bound, *attacked in zip(
        results["bound_above"], results["robust"]["reconstruction"]["l2"], results["latent_descent"]
    ):
        assert bound <= min(attacked)
    assert 0.1 < results["median_bound"] < 1 and (tmp_path / "picture.png").exists()
    assert "| reconstruction, APGD " in capsys.readouterr().out

    again = run(
        digits_run, tmp_path, "--fit-steps", 300, "--radii-l2", "0.5", "--radii-linf", "16", "--attack-steps", "1"
    )
    assert "used again" in capsys.readouterr().out
    assert again["generators"] == results["generators"] and again["clean"] == results["clean"]
    assert again["radii"] == dict(l2=[0.5], linf=[16 / 255])
    assert again["bound_above"] == results["bound_above"][1:2]


@pytest.mark.usefixtures("blank_pictures")
def test_enlarged_images_take_generators_of_their_own(digits_run, tmp_path, capsys):
    options = ["--radii-l2", "4", "--radii-linf", "8", "--attack-steps", "1", "--attack-images", "4", "--fit-steps", 2]
    small = run(digits_run, tmp_path, *options)
    large = run(digits_run, tmp_path, *options, "--side", 10)
    assert "used again" not in capsys.readouterr().out
    assert load_generators(tmp_path / "generators.safetensors")[0].shape == (1, 10, 10)
    assert large["own_clean"] == small["own_clean"] > 0.93


def test_what_cannot_be_is_refused(digits_run, denoiser_run, tmp_path):
    with pytest.raises(CDNError, match="denoiser: expected a run that classifies, got a DirectDenoiser"):
        run(denoiser_run, tmp_path)
    with pytest.raises(CDNError, match="side: expected at least 8, the side of the images, got 4"):
        run(digits_run, tmp_path, "--side", 4)
    with pytest.raises(CDNError, match="starts: expected the encoder and at most 2 draws, so 1 to 3, got 4"):
        run(digits_run, tmp_path, "--fit-steps", 1, "--starts", 4, "--draws", 2)
    with pytest.raises(CDNError, match="labels: expected images of every class, found none of class"):
        run(digits_run, tmp_path, "--train-images", 5)
