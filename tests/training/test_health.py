"""Steps with non-finite values: skipped, counted, and blamed on the right term."""

import pytest
import torch

from cdn.data import load_dataset
from cdn.errors import DataError, DivergedError
from cdn.training.health import Health
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer


@pytest.fixture
def trainer():
    return Trainer(Settings(width=8, batch_size=16, steps=50), load_dataset("digits"), 50, torch.device("cpu"))


def snapshot(trainer):
    moments = [value.clone() for state in trainer.optimizer.state.values() for value in state.values()]
    return [p.detach().clone() for p in trainer.model.parameters()] + moments


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_gradient_changes_nothing(trainer, value):
    trainer.advance()
    before = snapshot(trainer)
    handle = trainer.model.trunk.stem[0].weight.register_hook(lambda g: g * value)
    trainer.advance()
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(trainer)))
    assert trainer.health.check() == 1
    trainer.advance()
    assert not all(torch.equal(a, b) for a, b in zip(before, snapshot(trainer)))
    assert trainer.health.check() == 1


def test_a_non_finite_image_changes_nothing(trainer):
    trainer.advance()
    before = snapshot(trainer)
    batch = trainer.batch
    trainer.batch = lambda: (batch()[0].fill_(float("nan")), batch()[1])
    trainer.advance()
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(trainer)))


@pytest.mark.parametrize(
    "parts, norm, term",
    [
        (dict(classification="nan", denoising="1"), "nan", "classification"),
        (dict(classification="1", denoising="inf"), "nan", "denoising"),
        (dict(classification="1", denoising="1"), "inf", "gradient"),
        (dict(denoising="1"), "nan", "gradient"),
    ],
)
def test_repeated_failures_stop_and_name_the_term(parts, norm, term):
    health = Health("cpu", patience=3)
    parts = {name: torch.tensor(float(value)) for name, value in parts.items()}
    for _ in range(2):
        assert float(health.observe(parts, torch.tensor(float(norm)))) == 1
    assert health.check() == 2
    fine = {name: torch.tensor(1.0) for name in parts}
    assert float(health.observe(fine, torch.tensor(1.0))) == 0
    for _ in range(3):
        health.observe(parts, torch.tensor(float(norm)))
    with pytest.raises(DivergedError, match=rf"3 steps in a row were not finite: {term} \(5 times\)"):
        health.check()


def test_an_unreadable_image_on_the_way_loses_nothing(tmp_path, monkeypatch):
    from cdn.run_folder.state import load_state
    from cdn.training import loop

    class Broken(Trainer):
        def prepare(self):
            if self.step == 3:
                raise DataError("photo.jpg: expected an 8-bit image, got a truncated one")
            super().prepare()

    monkeypatch.setattr(loop, "Trainer", Broken)
    with pytest.raises(DataError, match="photo.jpg"):
        loop.train(Settings(width=8, batch_size=16, steps=50), tmp_path / "run", torch.device("cpu"), show=False)
    assert load_state(tmp_path / "run")["step"] == 3


def test_a_diverged_run_keeps_its_last_good_state(tmp_path, monkeypatch):
    from cdn.run_folder.state import load_state
    from cdn.training import loop

    class Exploding(Trainer):
        def batch(self):
            x, labels = super().batch()
            return (x if self.step < 3 else x * float("nan")), labels

    monkeypatch.setattr(loop, "Trainer", Exploding)
    settings = Settings(width=8, batch_size=16, steps=50)
    with pytest.raises(DivergedError, match="classification"):
        loop.train(settings, tmp_path / "run", torch.device("cpu"), show=False)
    state = load_state(tmp_path / "run")
    good = Trainer(settings, load_dataset("digits"), 50, torch.device("cpu"))
    for _ in range(3):
        good.advance()
    assert all(torch.equal(value, good.model.state_dict()[name]) for name, value in state["model"].items())
