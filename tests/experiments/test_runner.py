"""The frame of the experiments: options, reports, tables."""

import json
from dataclasses import replace

import pytest
import torch

from cdn.errors import CDNError
from cdn.experiments.runner import REPORT, Experiment, Findings, Session
from cdn.files import json_text
from cdn.pictures.tables import text_table


def experiment(run, *options):
    trial = Experiment("trial", "Try the frame.", lambda session: None, limit=20, options={})
    return Session(trial, trial.parser().parse_args([str(run), "--device", "cpu", *options]))


def test_the_report_says_how_to_repeat_it(digits_run, tmp_path):
    def measure(session):
        images, labels = session.test_images()
        assert images.shape == (7, 1, 8, 8) and labels.shape == (7,) and 0 <= images.min() < images.max() <= 1
        return Findings(dict(value=1.5, nothing=float("nan"), many=[1.0, float("inf")]), ["found"])

    trial = Experiment("trial", "Try the frame.", measure, options={})
    trial([str(digits_run), "--device", "cpu", "--out", str(tmp_path / "a" / "b"), "--limit", "7"])
    report = json.loads((tmp_path / "a" / "b" / REPORT).read_text())
    assert report["results"] == dict(value=1.5, nothing=None, many=[1.0, None])
    assert report["options"]["limit"] == 7 and report["data"] == "digits" and report["seconds"] >= 0
    assert {"torch", "threads", "device"} <= report["machine"].keys()


def test_exact_images_only(digits_run):
    trial = experiment(digits_run)
    split = trial.run.dataset.test
    split.exact[:3] = False
    exact, _ = trial.test_images(5, exact=True)
    every, _ = trial.test_images(8)
    assert torch.equal(exact, every[3:])


def test_further_runs_share_the_images_of_the_first(digits_run):
    trial = experiment(digits_run)
    assert trial.open(digits_run).config == trial.run.config
    vars(trial.run)["dataset"] = replace(trial.run.dataset, name="letters")  # where it is kept once it was loaded
    with pytest.raises(CDNError, match=r"trained on digits, 10 classes of images \[1, 8, 8\], but .* on letters, 10"):
        trial.open(digits_run)


def test_a_folder_that_cannot_be_made(digits_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CDNError, match="--out: .* cannot be made a folder"):
        experiment(digits_run, "--out", str(tmp_path / "file" / "out"))


def test_tables():
    table = text_table(["name", "value"], [["a", 0.123456], ["long name", None]])
    assert table.splitlines() == [
        "| name      |  value |",
        "|-----------|-------:|",
        "| a         | 0.1235 |",
        "| long name |      - |",
    ]
    assert json_text(float("-inf")) == "null"
