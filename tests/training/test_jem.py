"""The joint energy model: its chains, its loss, and its runs."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

import cdn
from cdn.commands import train
from cdn.data import load_dataset
from cdn.errors import CDNError, DivergedError
from cdn.noise_keys import JEM
from cdn.run_folder.weights import load
from cdn.training.jem import Gaussian, JointEnergy, contrastive_loss, sgld
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from cdn_kernels import Noise, standard_normal
from cdn_kernels.backends import cpu
from tests.runs import TINY_JEM, weights

DEVICE = torch.device("cpu")
IMAGES = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def trainer():
    settings = Settings(objective="jem", width=8, batch_size=16, steps=50, jem_steps=2, jem_buffer=30)
    return Trainer(settings, load_dataset("digits"), 50, DEVICE)


# The chain: for log p(y) = -|y - m|^2 / (2 v) a step is y <- (1 - a/v) (y - m) + m + s eps, so that in the limit
# E y = m and var y = s^2 / (1 - (1 - a/v)^2).


@pytest.mark.parametrize(
    "step_size, deviation",
    [(0.02, 0.2), (0.3, 0.6**0.5), (0.1, 0.05)],
    ids=["matched, small", "matched, large", "little noise"],
)
def test_chains_reach_the_distribution_of_a_gaussian(step_size, deviation):
    mean, variance = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), 0.5
    y = torch.rand(40_000, 3, dtype=torch.float64)
    y = sgld(
        lambda y: -(y - mean).square().sum(1) / (2 * variance),
        y,
        Noise(3),
        steps=200,
        step_size=step_size,
        deviation=deviation,
    )
    limit = deviation**2 / (1 - (1 - step_size / variance) ** 2)
    if deviation**2 == pytest.approx(2 * step_size):  # matched: off by the size of the step only
        assert limit == pytest.approx(variance / (1 - step_size / (2 * variance)))
    torch.testing.assert_close(y.mean(0), mean, rtol=0, atol=5 * (limit / 40_000) ** 0.5)
    torch.testing.assert_close(y.var(0), torch.full_like(mean, limit), rtol=5 * (2 / 40_000) ** 0.5, atol=0)


def test_a_chain_is_its_steps_one_by_one():
    model = cdn.gradresnet_small(4, 1, width=8, head="linear")
    density = lambda y: cdn.log_prob(model, y, create_graph=True)
    y = torch.rand(3, 1, 6, 5)
    options = dict(step_size=0.5, deviation=0.1)
    whole = sgld(density, y, Noise(1, 7), steps=3, **options)
    z = y
    for k in range(3):
        z = z + 0.5 * cdn.score(model, z) + 0.1 * standard_normal(z.shape, Noise(1, 7 + k))
    assert torch.equal(whole, z) and not whole.requires_grad
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_gradient_is_the_contrastive_one():
    """d/dtheta of -mean log p(c|y), plus E_samples d/dtheta log p - E_data d/dtheta log p."""
    model = cdn.gradresnet_small(5, 1, width=8, head="linear").double()
    y, samples = torch.rand(4, 1, 6, 6, dtype=torch.float64), torch.rand(3, 1, 6, 6, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    parameters = list(model.parameters())
    loss, parts = contrastive_loss(model, y, labels, samples)
    gradient = torch.autograd.grad(loss, parameters)
    average = lambda images: torch.autograd.grad(
        sum(torch.logsumexp(model(image[None]), 1).sum() for image in images) / len(images), parameters
    )
    posterior = torch.autograd.grad(F.nll_loss(F.log_softmax(model(y), 1), labels), parameters)
    for mine, discriminative, above, below in zip(gradient, posterior, average(samples), average(y)):
        torch.testing.assert_close(mine, discriminative + above - below, rtol=1e-9, atol=1e-12)
    assert float(parts["classification"] + parts["contrastive"]) == pytest.approx(float(loss.detach()))


def test_lengths_are_those_of_the_paper():
    """In images u = 2 x - 1 a step is u <- u + a grad_u log p + s eps, and training images get their own noise."""
    settings = Settings(
        objective="jem", batch_size=4, jem_steps=1, jem_step_size=0.7, jem_noise=0.2, jem_buffer=4, jem_restart=0.0
    )
    model = cdn.gradresnet_small(10, 1, width=8, head="linear")
    chains = JointEnergy(settings, IMAGES, 100, DEVICE)
    start = 2 * chains.chains - 1
    u = start.clone().requires_grad_()
    (score,) = torch.autograd.grad(model((u + 1) / 2).logsumexp(1).sum(), u)
    arrived = 2 * chains.sample(model, 4, step=5) - 1
    moved = arrived - (start + 0.7 * score)[match(start + 0.7 * score, arrived)]
    torch.testing.assert_close(moved, 0.2 * standard_normal(moved.shape, JEM.key(0, 5)), rtol=1e-4, atol=1e-5)


def match(rows, wanted):
    """Return for each of the wanted the index of the nearest row."""
    return torch.cdist(wanted.flatten(1), rows.flatten(1)).argmin(1)


def test_chains_go_on_where_they_were_or_start_afresh():
    model = cdn.gradresnet_small(10, 1, width=8, head="linear")
    still = dict(objective="jem", batch_size=20, jem_steps=1, jem_step_size=1e-9, jem_noise=0.0, jem_buffer=50)
    for probability in (0.0, 0.5, 1.0):
        chains = JointEnergy(Settings(**still, jem_restart=probability), IMAGES, 1000, DEVICE)
        before = chains.chains.clone()
        samples = chains.sample(model, 20, step=0)
        moved = (chains.chains - before).abs().amax((1, 2, 3)) > 1e-3
        assert {0.0: moved.sum() == 0, 0.5: 3 <= moved.sum() <= 17, 1.0: moved.sum() == 20}[probability]
        nearest = samples.flatten(1) - chains.chains.flatten(1)[match(chains.chains, samples)]
        assert nearest.abs().max() < 1e-5
    assert len(JointEnergy(Settings(**still), IMAGES, 30, DEVICE).chains) == 30


def test_chains_start_with_the_moments_of_images():
    """To five standard errors of their estimates from Gaussian draws; of other shapes too, with any mean."""
    images = torch.rand(7, 2, 3, 1, generator=torch.Generator().manual_seed(5)) ** 2
    draws = Gaussian(images).draw(40_000, torch.Generator().manual_seed(1))
    assert draws.shape == (40_000, 2, 3, 1)
    rows, drawn = images.flatten(1).double(), draws.flatten(1).double()
    wanted, found = torch.cov(rows.T, correction=0), torch.cov(drawn.T)
    variances = wanted.diagonal()
    assert ((drawn.mean(0) - rows.mean(0)).abs() < 5 * (variances / 40_000).sqrt()).all()
    assert ((found - wanted).abs() < 5 * ((variances[:, None] * variances + wanted**2) / 40_000).sqrt()).all()


@pytest.mark.parametrize("start, inside", [("gaussian", False), ("uniform", True)])
def test_what_chains_start_from(start, inside):
    settings = Settings(objective="jem", batch_size=16, jem_buffer=500, jem_start=start)
    chains = Trainer(settings, load_dataset("digits"), 50, DEVICE).jem.chains
    assert chains.shape == (500, 1, 8, 8) and bool(((chains >= 0) & (chains <= 1)).all()) == inside
    # The corners of digits are mostly black; uniform noise does not know.
    assert (float(chains[:, :, 0, 0].abs().mean()) < 0.2) == (start == "gaussian")


def test_training_lowers_the_cross_entropy_and_keeps_the_contrast_small():
    settings = Settings(objective="jem", width=16, batch_size=16, steps=40, jem_steps=5, learning_rate=5e-3, warmup=20)
    trainer = Trainer(settings, load_dataset("digits"), 40, DEVICE)
    parts = [trainer.advance() for _ in range(40)]
    loss = [float(p["classification"]) for p in parts]
    assert loss[0] == pytest.approx(2.3, abs=0.1) and sum(loss[-10:]) / 10 < 2.1
    assert all(abs(float(p["contrastive"])) < 10 for p in parts) and trainer.health.check() == 0


def test_a_step_again_is_the_same_step(trainer):
    for _ in range(3):
        trainer.advance()
    other = Trainer(trainer.settings, trainer.dataset, 50, DEVICE)
    other.restore(copy.deepcopy(trainer.state()))
    for a in (trainer, other):
        a.advance()
    assert torch.equal(trainer.jem.chains, other.jem.chains)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), other.model.parameters()))


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_that_stops_resumes_bit_for_bit(jem_run, tmp_path, monkeypatch):
    take = Trainer.take

    def broken(self):
        if self.step == 3:
            raise CDNError("the power failed")
        return take(self)

    with monkeypatch.context() as patch, pytest.raises(CDNError, match="power"):
        patch.setattr(Trainer, "take", broken)
        train.main([*TINY_JEM.split(), "--out", str(tmp_path / "broken"), "--checkpoint-seconds", "0"])
    train.main(["--resume", str(tmp_path / "broken"), "--checkpoint-seconds", "60"])
    states = [torch.load(run / "state.pt", weights_only=True) for run in (jem_run, tmp_path / "broken")]
    assert states[0]["step"] == 6 and states[0]["chains"].shape == (40, 1, 8, 8)
    assert torch.equal(states[0]["chains"], states[1]["chains"])
    assert all(torch.equal(value, states[1]["model"][name]) for name, value in states[0]["model"].items())


def test_a_run_says_what_it_is(jem_run):
    last = json.loads((jem_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["accuracy"] is not None and last["denoising_loss"] is not None
    assert load(jem_run).config["head"] == "linear"
    # A picture of a density of clean images at noise that it never saw would be taken for a denoiser's.
    assert not (jem_run / "denoising.png").exists() and (jem_run / "chains.png").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_fused_takes_the_same_steps(jem_run, tmp_path):
    if cpu.MISSING:
        pytest.skip(cpu.MISSING)
    train.main([*TINY_JEM.split(), "--fused", "--out", str(tmp_path / "fused")])
    fused = weights(tmp_path / "fused")
    for name, value in weights(jem_run).items():
        torch.testing.assert_close(value, fused[name], rtol=1e-2, atol=1e-3)


def test_chains_that_blow_up_stop_the_run_and_start_afresh(trainer):
    trainer.advance()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with torch.no_grad():
        trainer.jem.chains.fill_(float("nan"))
    for _ in range(10):
        trainer.jem.chains.fill_(float("nan"))
        trainer.advance()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))
    assert trainer.jem.chains.isfinite().flatten(1).all(1).sum() == 16
    with pytest.raises(DivergedError, match=r"10 steps in a row were not finite: contrastive \(10 times\)"):
        trainer.health.check()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "denoiser-small"], "a denoiser-small can only be trained with --objective denoising, got 'jem'"),
        (["--model", "resnet-small"], "a resnet-small can only be trained with --objective classification, got 'jem'"),
        (["--head", "log-energy"], "a joint energy model needs --head linear: .*, got 'log-energy'"),
        (
            ["--jem-start", "uniform", "--jem-buffer", "8"],
            "jem_buffer: a batch of 16 images needs as many chains, got 8",
        ),
    ],
)
def test_bad_options_get_one_sentence(tmp_path, options, message):
    with pytest.raises(CDNError, match=message):
        train.main([*TINY_JEM.split(), *options, "--out", str(tmp_path / "run")])
