"""The law of clean images in runs: what old configurations mean, and steps that spare clean images the score."""

import json

import pytest
import torch

from cdn.commands import train
from cdn.data import load_dataset
from cdn.errors import CDNError
from cdn.model.network import Network
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from tests.runs import weights

CPU = torch.device("cpu")
TINY = "--width 8 --steps 6 --batch-size 15 --clean-share 0.5 --device cpu --log-every 1 --no-fused"

TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def trained(settings, digits, steps=6):
    trainer = Trainer(settings, digits, settings.steps, CPU)
    rows, counts = [], []
    for _ in range(steps):
        rows.append({name: float(value) for name, value in trainer.advance().items()})
        counts += trainer.clean
    return rows, counts, trainer.state()


def settings(**options):
    return Settings(width=8, steps=20, batch_size=15, clean_share=0.5, fused=False, **options)


def test_new_runs_are_stratified_and_old_ones_independent(digits):
    assert settings().clean == "stratified"
    written = settings(clean="independent").as_dict()
    assert Settings.from_dict(written) == settings(clean="independent")
    del written["clean"], written["fused"]
    old = Settings.from_dict(written)
    assert (old.clean, old.fused, old.levels.clean) == ("independent", False, "independent")


def test_independent_steps_run_whole_and_stratified_ones_in_parts(digits, monkeypatch):
    seen = []
    forward = Network.__call__
    monkeypatch.setattr(Network, "__call__", lambda self, y: seen.append(len(y)) or forward(self, y))
    trained(settings(clean="independent"), digits, 3)
    assert seen == [15] * 3
    seen.clear()
    _, counts, _ = trained(settings(), digits)
    assert set(counts) == {7, 8} and seen == [n for count in counts for n in (15 - count, count)]


def test_parts_train_as_the_whole(digits, monkeypatch):
    mine, _, state = trained(settings(), digits)
    monkeypatch.setattr("cdn.objective.treats_images_alone", lambda model: False)
    whole, _, expected = trained(settings(), digits)
    for a, b in zip(mine, whole):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    for name, weight in expected["model"].items():
        torch.testing.assert_close(state["model"][name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_of_an_older_version_goes_on_by_its_law(tmp_path):
    """Bit for bit, and whatever its configuration does not say."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main([*TINY.split(), "--clean", "independent", "--out", str(whole)])
    train.main([*TINY.split(), "--clean", "independent", "--out", str(stopped)])
    (stopped / "state.pt").unlink()  # from the start again
    config = json.loads((stopped / "config.json").read_text())
    assert config["training"].pop("clean") == "independent"
    (stopped / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CDNError, match="was started with clean = 'independent' and cannot be resumed with 'stratified'"
    ):
        train.main(["--resume", str(stopped), "--clean", "stratified"])
    train.main(["--resume", str(stopped)])
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, stopped)]
    assert len(rows[0]) > 6
    for a, b in zip(*rows, strict=True):
        assert {k: v for k, v in a.items() if k not in TIMES} == {k: v for k, v in b.items() if k not in TIMES}
    mine, expected = weights(stopped), weights(whole)
    assert all(torch.equal(mine[name], value) for name, value in expected.items())
