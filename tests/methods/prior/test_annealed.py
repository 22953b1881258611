"""Annealed Langevin dynamics, on Gaussian priors whose noisy densities are known."""

import pytest
import torch

import cdn
from cdn.methods.prior.annealed import annealed_langevin, noise_ladder
from cdn.methods.prior.residual import blind_residual, noisy_start
from cdn.model.density import calibrate
from tests.methods.prior.gaussian import BlindGaussian, KnownLevel

NOISE = cdn.Noise(5)
MEAN = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).view(1, 1, 3)
VARIANCE = torch.tensor([0.01, 0.1, 0.4], dtype=torch.float64).view(1, 1, 3)


def test_a_ladder_falls_by_one_factor():
    levels = noise_ladder(1.0, 0.01, 5)
    torch.testing.assert_close(levels, torch.tensor([1, 10**-0.5, 0.1, 10**-1.5, 0.01]))


@pytest.mark.parametrize("step", [0.05, 0.3])
def test_samples_have_the_moments_of_the_prior(step):
    """The mean, and the variance v + sigma^2, within statistical error.

    But for the factor 1 / (1 - a / 2) of finite steps a = step sigma^2 / (v + sigma^2), which is exact for a Gaussian.
    """
    sigma, count = 0.4, 6000
    start = noisy_start((count, 1, 1, 3), NOISE).double()
    samples = annealed_langevin(
        KnownLevel(MEAN, VARIANCE), start, [1.0, sigma], NOISE, step=step, repeats=int(10 / step)
    )
    a = step * sigma**2 / (VARIANCE + sigma**2)
    expected = ((VARIANCE + sigma**2) / (1 - a / 2)).flatten()
    covariance = samples.flatten(1).T.cov()
    # Deviations of sample covariances: sqrt(2 / N) v on the diagonal, sqrt(v w / N) off it.
    error = (expected[:, None] * expected / count).sqrt()
    assert float(((covariance - expected.diag()) / error).abs().max()) < 5
    standardized = (samples.mean(0) - MEAN).flatten() / (expected / count).sqrt()
    # What is left of the start in the slowest value: exp(-step repeats a / step).
    assert float(standardized.abs().max()) < 5


def test_a_blind_model_keeps_to_the_level_of_the_stage():
    """By its residual it does; by sigma^2 times its own score it would drift away."""
    variance = torch.zeros(1, 10, 10, dtype=torch.float64)
    variance[0, 0, :5] = 0.2
    model = BlindGaussian(torch.full((1, 1, 10, 10), 0.5, dtype=torch.float64), variance)
    generator = torch.Generator().manual_seed(0)
    calibrate(model, 0.5 + variance.sqrt() * torch.randn(40, 1, 10, 10, generator=generator).double(), cdn.Noise(1))
    start = noisy_start((200, 1, 10, 10), NOISE).double()
    samples = annealed_langevin(blind_residual(model), start, noise_ladder(1.0, 0.1, 6), NOISE, step=0.1, repeats=25)
    still, free = samples[:, 0, 1:], samples[:, 0, 0, :5]
    assert float(still.var()) == pytest.approx(0.1**2 / (1 - 0.05), rel=0.05)
    # 1000 values: a standard error of 4.5 % of the variance.
    assert float(free.var()) == pytest.approx(0.2 + 0.1**2, rel=0.2)
    assert float(free.mean()) == pytest.approx(0.5, abs=5 * (0.21 / 1000) ** 0.5)


def test_the_key_decides():
    start = torch.zeros(4, 1, 1, 3, dtype=torch.float64)
    run = lambda key: annealed_langevin(KnownLevel(MEAN, VARIANCE), start, [0.3, 0.1], key, repeats=3)
    assert torch.equal(run(NOISE), run(NOISE)) and not torch.equal(run(NOISE), run(cdn.Noise(6)))
    assert not torch.equal(run(NOISE)[0], run(NOISE)[1])


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(levels=[0.1, 0.1]), "levels: expected noise levels above 0, each below"),
        (dict(levels=[0.1, -0.1]), "levels: expected noise levels above 0"),
        (dict(levels=[]), "levels: expected"),
        (dict(step=0.0), "step: expected a number in"),
        (dict(repeats=0), "repeats: expected at least 1, got 0"),
    ],
)
def test_bad_options(options, message):
    options = dict(levels=[0.3, 0.1], noise=NOISE) | options
    with pytest.raises(ValueError, match=message):
        annealed_langevin(KnownLevel(MEAN, VARIANCE), torch.zeros(1, 1, 1, 3, dtype=torch.float64), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(low=0.0), "expected 0 < low < high, got low=0.0"),
        (dict(low=2.0), "expected 0 < low < high"),
        (dict(count=1), "expected at least 2 levels, got 1"),
    ],
)
def test_bad_ladders(options, message):
    with pytest.raises(ValueError, match=message):
        noise_ladder(**options)
