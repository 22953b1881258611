"""Training that computes blocks again takes the steps that it would take without, and refuses what cannot be."""

import pytest
import torch

from cdn.commands import train
from cdn.errors import CDNError
from cdn.run_folder.state import load_state
from cdn.training.settings import Settings
from tests.training.watched_steps import take_steps

F64 = torch.float64


@pytest.mark.parametrize(
    "options", [dict(), dict(fused=True, final_denoising_weight=2.0), dict(model="denoiser-small"), dict(accumulate=2)]
)
def test_steps_are_the_same(options):
    found, expected = (take_steps(options=options | dict(recompute=again), dtype=F64, until=6) for again in (1, 0))
    for name, value in expected["model"].items():
        assert (found["model"][name] - value).norm() <= 1e-12 * value.norm(), name


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_comes_to_the_same(tmp_path):
    tiny = "--width 8 --steps 6 --batch-size 16 --evaluations 1 --device cpu --no-fused"
    train.main([*tiny.split(), "--out", str(tmp_path / "plain")])
    train.main([*tiny.split(), "--recompute", "--out", str(tmp_path / "again")])
    plain, again = load_state(tmp_path / "plain")["model"], load_state(tmp_path / "again")["model"]
    assert all((again[name] - value).norm() <= 1e-3 * value.norm() for name, value in plain.items())


def test_statistics_are_not_counted_twice():
    with pytest.raises(CDNError, match="--recompute: a resnet18 counts the statistics of every batch"):
        Settings(model="resnet18", recompute=True)
