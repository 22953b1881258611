"""Bounds and learning curves from the command line."""

import json

import pytest
import torch

from cdn.errors import CDNError, DataError
from cdn.experiments import bounds, learning_curves
from cdn.methods.learning_bounds import MEASURES, Bound
from cdn.training.settings import Settings


def test_bounds_draws_and_reports_all_crossings(tmp_path, capsys):
    bounds.main(
        [
            "--curve",
            "generative",
            "0.1",
            "2",
            "--curve",
            "discriminative",
            "0.05",
            "20",
            "--curve",
            "joint",
            "0.06",
            "6",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    printed = capsys.readouterr().out
    assert "| generative, discriminative |   360 |" in printed and "| generative, joint          |   100 |" in printed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [round(c["n"]) for c in report["results"]["crossings"]] == [100, 360, 1400]
    assert report["results"]["bounds"]["joint"] == dict(bias=0.06, variance=6.0)
    assert (tmp_path / "out" / "picture.png").stat().st_size > 10_000


def test_bounds_that_never_cross_are_told(tmp_path, capsys):
    bounds.main(["--curve", "a", "0.1", "2", "--curve", "b", "0.1", "3", "--out", str(tmp_path)])
    assert "no two of them cross" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--curve", "a", "x", "2"], "--curve a: .* a number of at least 0, got 'x'"),
        (["--curve", "a", "-1", "2"], "got '-1'"),
        (["--curve", "a", "0", "0"], "two zeros"),
        (["--curve", "a", "1", "2", "--curve", "a", "1", "3"], "'a' is given twice"),
        (["--images", "100", "10"], "expected LOW < HIGH, got 100 and 10"),
    ],
)
def test_bounds_bad_options(tmp_path, options, message):
    with pytest.raises(CDNError, match=message):
        bounds.main([*options, "--out", str(tmp_path)])


def measure(out, *options):
    return learning_curves.main(
        [
            "--out",
            str(out),
            "--width",
            "8",
            "--batch-size",
            "16",
            "--device",
            "cpu",
            "--steps",
            "10",
            "--seeds",
            "0",
            "--evaluations",
            "1",
            *options,
        ]
    )


@pytest.mark.usefixtures("blank_pictures")
def test_learning_curves_of_two_sizes(tmp_path, capsys):
    out = tmp_path / "out"
    assert measure(out, "--sizes", "50", "400", "--objectives", "joint") is None
    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())["results"]
    rows = {(row["objective"], row["n"]): row for row in report["runs"]}
    assert rows.keys() == {("joint", 50), ("joint", 400)}
    assert all(row[measure] > 0 for row in rows.values() for measure in MEASURES)
    assert report["fits"].keys() == MEASURES.keys()
    assert all(fits.keys() == {"joint"} for fits in report["fits"].values())
    lines = (out / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [50, 400]
    config = json.loads((out / "joint-50-seed0" / "config.json").read_text())
    assert config["data"]["train_images"] == 50 and config["training"]["train_images"] == 50

    # Nothing is trained twice, and the rest of the output is the same.
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    measure(out, "--sizes", "50", "400", "--objectives", "joint")
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")} == times
    assert (out / "runs.jsonl").read_text().splitlines() == lines
    tables = lambda text: [line for line in text.splitlines() if line.startswith("|")]
    assert tables(capsys.readouterr().out) == tables(printed)

    # Other settings are other runs, and do not mix with those in the folder.
    with pytest.raises(CDNError, match="joint-50-seed0 holds a run of other settings"):
        measure(out, "--sizes", "50", "--learning-rate", "1e-3")


def test_curves_that_cross(tmp_path, capsys):
    """Runs whose errors follow known bounds: the fits recover them, and where they cross."""
    common = ["--sizes", "100", "400", "--objectives", "joint", "classification", "denoising"]
    errors = {"joint": Bound(0.1, 2.0), "classification": Bound(0.05, 20.0), "denoising": Bound(0.9, 1.0)}
    rows = []
    for objective, bound in errors.items():
        for n in (100, 400):
            chosen = Settings(
                width=8,
                batch_size=16,
                device="cpu",
                steps=10,
                seed=0,
                evaluations=1,
                objective=objective,
                train_images=n,
            ).decided(torch.device("cpu"))
            rows.append(
                dict(
                    settings=chosen.as_dict(),
                    objective=objective,
                    n=n,
                    seed=0,
                    error=bound(n),
                    error_noisy=0.5,
                    seconds=1.0,
                    denoising_loss=0.3,
                )
            )
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measure(tmp_path, *common)
    printed = capsys.readouterr().out
    assert "fits of test error, clean images cross at n* = 360: joint, classification\n" in printed
    report = json.loads((tmp_path / "report.json").read_text())["results"]
    assert report["fits"]["error"]["joint"]["variance"] == pytest.approx(2.0)
    # What a model was not trained for is no point of a curve.
    assert report["fits"]["error"].keys() == {"joint", "classification"}
    assert report["fits"]["denoising_loss"].keys() == {"joint", "denoising"} and len(report["crossings"]) == 1
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert not list(tmp_path.glob("*/config.json"))  # nothing was trained


@pytest.mark.parametrize(
    "options, message",
    [
        (["--sizes", "8", "100"], r"--sizes: expected 16 \(one batch\) to 1437 \(all images\), got 8 to 100"),
        (["--sizes", "100", "2000"], "got 100 to 2000"),
        (["--seed", "3"], "--seed is what this experiment varies"),
        (["--objective", "joint"], "--objective is what this experiment varies"),
        (["--epochs", "3"], "--epochs is what"),
        (["--data", "cifar10"], "needs the folder"),
    ],
)
def test_learning_curves_bad_options(tmp_path, options, message):
    with pytest.raises((CDNError, DataError), match=message):
        measure(tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        measure(tmp_path, "--colour", "red")
    assert "unrecognized arguments: --colour red" in capsys.readouterr().err
