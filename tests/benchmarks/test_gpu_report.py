"""The report of a GPU runs what it is asked for, survives what fails, and refuses where there is no GPU."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu_report
from benchmarks.gpu_report import STAGES, Stage, choose
from cdn.cli.training import training_parser
from cdn.training.settings import Settings


def test_stages_are_chosen_by_name_or_beginning():
    assert set(choose(["train"])) == {name for name in STAGES if name.startswith("train")}
    assert list(choose(["step", "info"])) == ["info", "step"]
    assert all(stage.default for stage in choose(None).values())
    with pytest.raises(SystemExit, match="--only: expected some of build, tests-triton.* got 'fly'"):
        choose(["fly"])


def test_without_a_gpu_there_is_nothing_to_report(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        gpu_report.main(["--out", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_training_needs_data(tmp_path):
    with pytest.raises(SystemExit, match="--data-dir: training needs"):
        gpu_report.main(["--out", str(tmp_path), "--only", "train"])


def test_a_stage_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_report.machine, "describe", lambda device: dict(device=device))
    monkeypatch.setattr(
        gpu_report,
        "STAGES",
        {
            "bad": Stage(lambda args: ["-c", "print('tried'); raise SystemExit(3)"], "fails"),
            "good": Stage(lambda args: ["-c", "print('done')"], "works"),
        },
    )
    gpu_report.main(["--out", str(tmp_path)])
    stages = json.loads((tmp_path / "report.json").read_text())["stages"]
    assert [(row["stage"], row["exit"]) for row in stages] == [("bad", 3), ("good", 0)]
    assert (tmp_path / "bad.log").read_text() == "tried\n"
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "done" in printed


def test_stages_that_time_nothing_run_side_by_side(monkeypatch, tmp_path, capsys):
    """Each of two waits for the other, and the third finds what both left."""
    monkeypatch.setattr(gpu_report.machine, "describe", lambda device: dict(device=device))
    wait = (
        "import pathlib, time; here, there = map(pathlib.Path, {}); here.touch()\n"
        "for _ in range(600): time.sleep(0.1 * (not there.exists()))\n"
        "assert there.exists(); print('met')"
    )
    a, b = (str(tmp_path / name) for name in "ab")
    both = f"import os; assert os.path.exists({a!r}) and os.path.exists({b!r})"
    monkeypatch.setattr(
        gpu_report,
        "STAGES",
        {
            "one": Stage(lambda args: ["-c", wait.format([a, b])], "meets another", beside="pair"),
            "other": Stage(lambda args: ["-c", wait.format([b, a])], "meets one", beside="pair"),
            "after": Stage(lambda args: ["-c", both], "comes later"),
        },
    )
    gpu_report.main(["--out", str(tmp_path), "--device", "cpu"])
    stages = json.loads((tmp_path / "report.json").read_text())["stages"]
    assert [row["exit"] for row in stages] == [0, 0, 0] and stages[-1]["stage"] == "after"
    printed = capsys.readouterr().out
    assert "[one] met" in printed and "[other] met" in printed


METRICS = [
    dict(kind="train", step=10, epoch=5.0, skipped=0, images_per_second=200.0),
    dict(kind="evaluation", step=10, seconds=3.2, classified=9, denoised=None, accuracy=0.5, psnr_25=28.0),
    dict(kind="train", step=20, epoch=10.0, skipped=1, images_per_second=300.0),
    dict(kind="evaluation", step=20, seconds=6.4, classified=90, denoised=8, accuracy=0.75, psnr_25=29.5),
]


def test_accuracy_and_psnr_over_time_are_reported(tmp_path):
    for name, rows in (("joint", METRICS), ("denoiser", METRICS[:2]), ("classification", METRICS[:1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {name: gpu_report.training(tmp_path / name) for name in gpu_report.RUNS}
    assert [row["epoch"] for row in found["joint"]["evaluations"]] == [5.0, 10.0]
    assert found["joint"]["images_per_second"] == 250.0 and found["joint"]["skipped"] == 1
    table = gpu_report.training_table(found)
    assert "75.00%" in table and "29.50" in table and "direct denoiser: +1.50 dB at sigma 25/255" in table
    assert gpu_report.training(tmp_path / "none") is None


@pytest.mark.slow
def test_training_with_both_baselines_on_strips(tmp_path):
    """What one command does on a GPU, small, on the CPU."""
    random = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 32)):
        pixels = random.integers(0, 256, (32 * count, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{split}_000.webp", lossless=True)
        np.save(tmp_path / f"{split}_labels.npy", np.arange(count) % 10)
    gpu_report.main(
        [
            "--out",
            str(tmp_path / "report"),
            "--only",
            "train",
            "--data-dir",
            str(tmp_path),
            "--epochs",
            "1",
            "--device",
            "cpu",
            "--options",
            "--width 8 --batch-size 16 --evaluations 1",
        ]
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["exit"] for row in report["stages"]] == [0] * 4
    assert report["training"].keys() == gpu_report.RUNS.keys()
    assert report["training"]["joint"]["evaluations"][-1]["classified"] == 32
    assert (tmp_path / "report" / "comparison" / "comparison.md").exists()


def test_every_stage_is_a_command_that_exists():
    class Arguments:
        out, data_dir, epochs, seconds, device, options = gpu_report.ROOT, gpu_report.ROOT, 1, 1.0, "cuda", ""

    for name, stage in STAGES.items():
        words = stage.command(Arguments)
        if words[1:2] == ["cdn.train"]:
            Settings(
                **{
                    key: value
                    for key, value in vars(training_parser().parse_args(words[2:])).items()
                    if key in Settings.__dataclass_fields__
                }
            )
        if "-m" in words:
            module = words[words.index("-m") + 1].split(".")
            assert module[0] == "pytest" or (gpu_report.ROOT.joinpath(*module).with_suffix(".py")).exists(), name
        files = [word for word in words if word.endswith(".py")]
        assert all((gpu_report.ROOT / stage.folder / file).exists() for file in files), name
