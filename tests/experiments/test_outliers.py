"""The command that tells outliers, on the digits."""

import json

import pytest

from cdn.errors import CDNError
from cdn.experiments import outliers
from cdn.experiments.runner import REPORT
from cdn.images.image_files import write_image
from cdn.run_folder.config import read_config, write_config
from cdn.run_folder.opened import open_run


def run(folder, out, *options):
    outliers.main([str(folder), "--out", str(out), "--device", "cpu", *options])
    return json.loads((out / REPORT).read_text())["results"]


def say(folder, objective):
    """Let a run say of itself that it was trained on another objective."""
    config = read_config(folder)
    config.training["objective"] = objective
    write_config(folder, config)


def test_digits_are_told_from_noise_but_not_from_digits(digits_run, tmp_path, capsys):
    split, folder = open_run(digits_run).dataset.test, tmp_path / "digits"
    folder.mkdir()
    for i in range(80):
        write_image(folder / f"{i:03d}.png", split.pixels[[200 + i]].float() / 255)
    results = run(digits_run, tmp_path / "out", "--limit", "160", "--outliers", f"other digits={folder}")
    assert results["inliers"] == 80 and set(results["outliers"].values()) == {80}
    clean, noisy = results["separation"].values()
    assert clean.keys() == noisy.keys() >= {"Gaussian noise", "constant", "quarter turn", "shuffled blocks"}
    for level in (clean, noisy):
        for name in ("Gaussian noise", "uniform noise", "inverted", "shuffled pixels"):
            assert level[name]["typicality"]["auroc"] > 0.95, name
            assert level[name]["max softmax"]["auroc"] > 0.75, name
            assert level[name]["typicality"]["fpr95"] < 0.2, name
        for detector, figures in level["other digits"].items():
            # 80 against 80: a standard error of 0.045.
            assert abs(figures["auroc"] - 0.5) < 0.18, detector
    printed = capsys.readouterr().out
    assert "| quarter turn" in printed and "AUPR out, σ = 25/255" in printed
    for name in ("picture.png", "ratings.png", "roc.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000


@pytest.mark.usefixtures("blank_pictures")
def test_what_a_run_lacks(digits_run, denoiser_run, copy_run, tmp_path):
    folder = copy_run(digits_run)
    for objective, detectors in (
        ("classification", ["max softmax"]),
        ("denoising", ["log density", "typicality", "score norm"]),
    ):
        say(folder, objective)
        results = run(folder, tmp_path / "out", "--limit", "20")
        assert all(list(found) == detectors for level in results["separation"].values() for found in level.values())
    with pytest.raises(CDNError, match="expected a run that models a density or classes, got a DirectDenoiser"):
        run(denoiser_run, tmp_path / "out")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--outliers", "x"], None),
        (["--sigma", "-1"], None),
        (["--outliers", "constant=."], "as 'constant' is taken"),
        (["--outliers", "x=nowhere"], "nowhere: expected a folder"),
        (["--limit", "3"], "--limit: expected at least 4 test images"),
    ],
)
def test_bad_options(digits_run, tmp_path, capsys, options, message):
    if message is None:
        with pytest.raises(SystemExit):
            run(digits_run, tmp_path, *options)
        assert "expected" in capsys.readouterr().err
    else:
        with pytest.raises(CDNError, match=message):
            run(digits_run, tmp_path, *options)
