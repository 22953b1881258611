"""What a training says at its end of steps that it had to skip."""

import json

import pytest
import torch

from cdn.commands import train
from cdn.training.trainer import Trainer

TINY = ["--model", "resnet-small", "--width", "8", "--steps", "4", "--batch-size", "16"]
TINY += ["--evaluations", "1", "--log-every", "1", "--device", "cpu"]


@pytest.fixture
def broken_steps(monkeypatch):
    """Let the images of some steps be no numbers."""
    steps, batch = set(), Trainer.batch

    def broken(self):
        images, labels = batch(self)
        return (images.fill_(torch.nan) if self.step in steps else images), labels

    monkeypatch.setattr(Trainer, "batch", broken)
    return steps


def test_skipped_steps_are_told_with_their_cause(tmp_path, broken_steps, capsys):
    broken_steps |= {1, 3}
    assert train.main([*TINY, "--out", str(tmp_path / "run")]) is None
    last = capsys.readouterr().out.splitlines()[-3:]
    assert last[0] == "2 of 4 steps were skipped, as they were not finite: classification (2 times)"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows if row["kind"] == "train"] == [0, 1, 1, 2]


def test_a_run_without_them_says_nothing_of_it(tmp_path, broken_steps, capsys):
    assert train.main([*TINY, "--out", str(tmp_path / "run")]) is None
    assert "skipped" not in capsys.readouterr().out
