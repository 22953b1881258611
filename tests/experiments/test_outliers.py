"""The command that tells outliers, on the digits."""
import json

import pytest

from cdn import train
from cdn.errors import CDNError
from cdn.experiments import outliers
from cdn.experiments.command import REPORT


def run(folder, out, *options):
    outliers.main([str(folder), "--out", str(out), "--device", "cpu", *options])
    return json.loads((out / REPORT).read_text())["results"]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """A function that trains a run of some kind for one step."""
    def make(*options):
        folder = tmp_path_factory.mktemp("short") / "run"
        train.main(["--out", str(folder), "--width", "8", "--steps", "1", "--evaluations", "1", "--device", "cpu",
                    *options])
        return folder
    return make


def test_digits_are_told_from_noise(digits_run, tmp_path, capsys):
    results = run(digits_run, tmp_path, "--limit", "160")
    assert results["inliers"] == 80 and set(results["outliers"].values()) == {80}
    clean, noisy = results["separation"].values()
    assert clean.keys() == noisy.keys() >= {"Gaussian noise", "constant", "quarter turn", "shuffled blocks"}
    for level in (clean, noisy):
        for name in ("Gaussian noise", "uniform noise", "inverted", "shuffled pixels"):
            assert level[name]["typicality"]["auroc"] > 0.95, name
            assert level[name]["max softmax"]["auroc"] > 0.75, name
            assert level[name]["typicality"]["fpr95"] < 0.2, name
    # A random pair of digits is harder to tell from a digit than noise is.
    assert clean["interpolated"]["typicality"]["auroc"] < clean["uniform noise"]["typicality"]["auroc"]
    printed = capsys.readouterr().out
    assert "| quarter turn" in printed and "AUPR out, σ = 25/255" in printed
    for name in ("picture.png", "ratings.png", "roc.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_the_digits_themselves_are_not_told_from_digits(digits_run, tmp_path):
    """Other test images as outliers, from a folder: every detector is near the chance of one half."""
    from cdn.evaluation.files import write_image
    from cdn.runs import open_run
    split = open_run(digits_run).dataset.test
    folder = tmp_path / "digits"
    folder.mkdir()
    for i in range(100):
        write_image(folder / f"{i:03d}.png", split.images[[200 + i]].float() / 255)
    results = run(digits_run, tmp_path / "out", "--limit", "200", "--outliers", f"other digits={folder}")
    for level in results["separation"].values():
        for detector, figures in level["other digits"].items():
            # 100 against 100: a standard error of 0.04.
            assert abs(figures["auroc"] - 0.5) < 0.17, detector


def test_what_a_run_lacks(digits_run, short_run, tmp_path):
    classifier = short_run("--objective", "classification")
    results = run(classifier, tmp_path / "a", "--limit", "20")
    assert all(list(detectors) == ["max softmax"] for level in results["separation"].values()
               for detectors in level.values())
    denoising = short_run("--objective", "denoising")
    results = run(denoising, tmp_path / "b", "--limit", "20")
    assert "max softmax" not in next(iter(results["separation"]["clean"].values()))
    with pytest.raises(CDNError, match="expected a model with a density or with classes, got a direct denoiser"):
        run(short_run("--model", "denoiser-small"), tmp_path / "c")


@pytest.mark.parametrize("options, message", [
    (["--outliers", "x"], None), (["--sigma", "-1"], None),
    (["--outliers", "constant=."], "as 'constant' is taken"),
    (["--outliers", "x=nowhere"], "nowhere: expected a folder"),
    (["--limit", "3"], "--limit: expected at least 4 test images")])
def test_bad_options(digits_run, tmp_path, capsys, options, message):
    if message is None:
        with pytest.raises(SystemExit):
            run(digits_run, tmp_path, *options)
        assert "expected" in capsys.readouterr().err
    else:
        with pytest.raises(CDNError, match=message):
            run(digits_run, tmp_path, *options)
