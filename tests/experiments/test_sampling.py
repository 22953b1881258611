"""The command that samples from the prior, on the digits."""

import json

import pytest

from cdn.errors import CDNError
from cdn.experiments import sampling
from cdn.experiments.runner import REPORT


def run(folder, out, *options):
    sampling.main([str(folder), "--out", str(out), "--device", "cpu", *options])
    return json.loads((out / REPORT).read_text())["results"]


def test_samples_of_digits(digits_run, tmp_path, capsys):
    results = run(
        digits_run,
        tmp_path,
        "--limit",
        "60",
        "--reference",
        "500",
        "--step",
        "0.05",
        "--beta",
        "0.4",
        "--levels",
        "6",
        "--repeats",
        "5",
    )
    sets = results["sets"]
    assert results["count"] == 60 and list(sets) == [
        "ascent",
        "ascent, given the class",
        "langevin",
        "langevin, given the class",
        "test images",
        "uniform noise",
    ]
    floor, ceiling = sets["test images"]["frechet"], sets["uniform noise"]["frechet"]
    for method in ("ascent", "langevin"):
        # Far better than noise, worse than digits, and none of them a copy of a digit of the training.
        assert floor < sets[method]["frechet"] < ceiling / 2, method
        # Chance is 0.1, with a standard error of 0.04 for 60 samples.
        assert sets[f"{method}, given the class"]["agreement"] > 0.3, method
        assert sets[method]["agreement"] is None and sets[method]["nearest"] > 0.02
    assert sets["langevin"]["steps"] == 30
    assert "Fréchet distance" in capsys.readouterr().out
    for name in ("picture.png", "nearest.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.usefixtures("blank_pictures")
def test_the_seed_decides_and_a_classifier_may_judge(digits_run, plain_run, tmp_path):
    options = ["--limit", "10", "--methods", "langevin", "--levels", "3", "--repeats", "2", "--guidance", "2"]
    first, again = (run(digits_run, tmp_path / name, *options)["sets"]["langevin, given the class"] for name in "ab")
    other = run(digits_run, tmp_path / "c", *options, "--seed", "1")["sets"]["langevin, given the class"]
    assert first["frechet"] == again["frechet"] != other["frechet"]
    judged = run(digits_run, tmp_path / "d", *options, "--classifier", str(plain_run))
    assert judged["features"] == str(plain_run)
    assert judged["sets"]["langevin, given the class"]["nearest"] == first["nearest"]
    assert judged["sets"]["langevin, given the class"]["frechet"] != first["frechet"]


@pytest.mark.usefixtures("blank_pictures")
def test_what_a_run_lacks(denoiser_run, plain_run, classification_run, tmp_path):
    options = ["--limit", "10", "--methods", "ascent", "--beta", "1", "--step-limit", "5"]
    sets = run(denoiser_run, tmp_path / "a", *options)
    assert list(sets["sets"]) == ["ascent", "test images", "uniform noise"]
    for folder in (plain_run, classification_run):
        with pytest.raises(CDNError, match="expected a run that denoises, got a"):
            run(folder, tmp_path / "b")
    with pytest.raises(CDNError, match="denoiser: expected a run that classifies, got a DirectDenoiser"):
        run(denoiser_run, tmp_path / "c", "--classifier", str(denoiser_run))


def test_bad_options(digits_run, tmp_path, capsys):
    with pytest.raises(CDNError, match="--beta: expected a number in"):
        run(digits_run, tmp_path, "--beta", "2")
    with pytest.raises(CDNError, match="--levels: expected at least 2 noise levels, got 1"):
        run(digits_run, tmp_path, "--levels", "1")
    with pytest.raises(CDNError, match="--limit: expected at least 2 images"):
        run(digits_run, tmp_path, "--limit", "1")
    with pytest.raises(SystemExit):
        run(digits_run, tmp_path, "--methods", "gibbs")
    assert "invalid choice: 'gibbs'" in capsys.readouterr().err
