"""The report of a GPU runs what it is asked for, survives what fails, and refuses where there is no GPU."""
import json

import pytest
import torch

from benchmarks import gpu_report
from benchmarks.gpu_report import STAGES, Stage, choose


def test_stages_are_chosen_by_name_or_beginning():
    assert set(choose(["train"])) == {name for name in STAGES if name.startswith("train")}
    assert list(choose(["step", "info"])) == ["info", "step"]
    assert all(stage.default for stage in choose(None).values())
    with pytest.raises(SystemExit, match="--only: expected some of build, info, tests.* got 'fly'"):
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
    monkeypatch.setattr(gpu_report, "STAGES", {
        "bad": Stage(lambda args: ["-c", "print('tried'); raise SystemExit(3)"], "fails"),
        "good": Stage(lambda args: ["-c", "print('done')"], "works")})
    gpu_report.main(["--out", str(tmp_path)])
    stages = json.loads((tmp_path / "report.json").read_text())["stages"]
    assert [(row["stage"], row["exit"]) for row in stages] == [("bad", 3), ("good", 0)]
    assert (tmp_path / "bad.log").read_text() == "tried\n"
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "done" in printed


def test_every_stage_is_a_command_that_exists():
    class Arguments:
        out, data_dir, epochs, seconds = gpu_report.ROOT, gpu_report.ROOT, 1, 1.0

    for name, stage in STAGES.items():
        words = stage.command(Arguments)
        if "-m" in words:
            module = words[words.index("-m") + 1].split(".")
            assert module[0] == "pytest" or (gpu_report.ROOT.joinpath(*module).with_suffix(".py")).exists(), name
        files = [word for word in words if word.endswith(".py")]
        assert all((gpu_report.ROOT / stage.folder / file).exists() for file in files), name
