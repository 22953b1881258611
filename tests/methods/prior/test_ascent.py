"""The stochastic ascent, on priors for which its path is known."""

import math

import pytest
import torch

import cdn
from cdn.methods.prior.ascent import ascend
from cdn.methods.prior.residual import blind_residual, noisy_start, root_mean_square
from cdn.model.density import calibrate, sigma_from_score
from tests.methods.prior.gaussian import BlindGaussian

NOISE = cdn.Noise(3)


def subspace(free=4, side=16, variance=0.3):
    """The residual of a prior that is Gaussian in a few values and 0 in all others, which tell the noise level."""
    mask = torch.zeros(1, side, side, dtype=torch.float64)
    mask.view(-1)[:free] = 1

    def residual(y, sigma=None):
        level = root_mean_square(y[:, mask == 0])
        square = level.square().view(-1, 1, 1, 1)
        return torch.where(mask > 0, -square / (variance + square), -1.0) * y, level

    return residual, mask.bool()


def start(batch, side=16):
    return noisy_start((batch, 1, side, side), NOISE, mean=0.0).double()


def test_without_noise_it_is_the_probability_flow():
    """Beta = 1: a value of variance v goes from y_0 to y_0 sqrt((v + stop^2) / (v + 1)), for small steps."""
    residual, free = subspace(variance=0.3)
    y = start(8)
    out = ascend(residual, y, NOISE, step=5e-4, beta=1.0, stop=0.05)
    assert out.finished.all()
    last = out.levels[-1].square()
    factor = ((0.3 + last) / (0.3 + out.levels[0].square())).sqrt()
    torch.testing.assert_close(out.images[:, free], factor[:, None] * y[:, free], rtol=0.02, atol=0)


def test_a_prior_of_one_image_is_reached():
    mean = torch.rand(1, 6, 6, dtype=torch.float64)
    residual = lambda y, sigma=None: (mean - y, root_mean_square(mean - y))
    out = ascend(residual, start(5, 6), NOISE, step=0.05, beta=0.5, stop=1e-3)
    assert out.finished.all() and float(root_mean_square(out.images - mean).max()) <= 1e-3


@pytest.mark.parametrize("beta", [0.2, 0.7])
def test_the_level_falls_by_one_minus_beta_h(beta):
    """What is removed and what is put back: the level of step t is the product of 1 - beta h over the steps before."""
    residual, _ = subspace(side=64)
    out = ascend(residual, start(4, 64), NOISE, step=0.1, beta=beta, stop=0.01)
    h = torch.tensor([0.1 * (t + 1) / (1 + 0.1 * t) for t in range(len(out.levels) - 1)], dtype=torch.float64)
    expected = torch.cat([torch.ones(1), (1 - beta * h).cumprod(0)])
    # Each level is an estimate from 4092 values, and the errors of the steps add up.
    torch.testing.assert_close(out.levels.mean(1) / out.levels[0].mean(), expected, rtol=0.05, atol=0)


def test_samples_have_the_variance_of_the_recursion():
    """The variance of a free value follows v' = (1 - h a)^2 v + gamma^2, a = sigma^2 / (v_prior + sigma^2)."""
    residual, free = subspace(side=12, variance=0.3)
    out = ascend(residual, start(1500, 12), NOISE, step=0.1, beta=0.3, stop=0.02)
    variance, sigma = 1.0, 1.0
    for t in range(len(out.levels) - 1):
        h = 0.1 * (t + 1) / (1 + 0.1 * t)
        gamma_square = ((1 - 0.3 * h) ** 2 - (1 - h) ** 2) * sigma**2
        variance = (1 - h * sigma**2 / (0.3 + sigma**2)) ** 2 * variance + gamma_square
        sigma *= 1 - 0.3 * h
    values = out.images[:, free]
    # 6000 values: a standard error of 1.8 % of the variance.
    assert float(values.var()) == pytest.approx(variance, rel=0.07)
    assert abs(float(values.mean())) < 5 * math.sqrt(variance / values.numel())


def test_an_image_rests_once_it_is_done():
    """The batch an image is in changes nothing: neither its path nor when it stops."""
    residual, _ = subspace()
    y = start(3)
    y[1] *= 0.02
    together = ascend(residual, y, NOISE, step=0.1, beta=0.5, stop=0.05)
    assert torch.equal(together.images[1], y[1])
    alone = ascend(residual, y[:1], NOISE, step=0.1, beta=0.5, stop=0.05)
    assert torch.equal(alone.images[0], together.images[0])
    torch.testing.assert_close(alone.levels[:, 0], together.levels[: len(alone.levels), 0])


def test_steps_that_do_not_suffice_are_told():
    residual, _ = subspace()
    out = ascend(residual, start(3), NOISE, step=0.01, beta=0.1, limit=5)
    assert out.levels.shape == (6, 3) and not out.finished.any()


@pytest.fixture(scope="module")
def blind():
    """A blind model of two classes that differ in one free value, and are constant elsewhere."""
    variance = torch.zeros(1, 12, 12, dtype=torch.float64)
    variance[0, 0, :2] = 0.05
    means = torch.full((2, 1, 12, 12), 0.5, dtype=torch.float64)
    means[0, 0, 0, 0], means[1, 0, 0, 0] = -1.0, 2.0
    model = BlindGaussian(means, variance)
    generator = torch.Generator().manual_seed(0)
    x = means[torch.arange(60) % 2] + variance.sqrt() * torch.randn(60, 1, 12, 12, generator=generator).double()
    calibrate(model, x, cdn.Noise(1))
    return model, x


def test_a_blind_residual_denoises(blind):
    """f(y) = D(y) - y, and both estimates of the level find it."""
    model, x = blind
    y = x + 0.2 * noisy_start(x.shape, NOISE, mean=0.0)
    for level in ("residual", "calibrated"):
        f, sigma = blind_residual(model, level=level)(y)
        assert float(root_mean_square(y + f - x).mean()) < 0.06
        assert sigma.mean() == pytest.approx(0.2, rel=0.03)
    s = cdn.score(model, y)
    torch.testing.assert_close(sigma_from_score(model, s), cdn.estimate_sigma(model, y))


@pytest.mark.parametrize("label", [0, 1])
def test_conditional_ascent_finds_its_class(blind, label):
    model, _ = blind
    labels = torch.full((20,), label)
    y = noisy_start((20, 1, 12, 12), NOISE).double()
    with torch.no_grad():
        out = ascend(blind_residual(model, labels), y, NOISE, step=0.1, beta=0.3, stop=0.02)
    assert out.finished.all() and (model(out.images).argmax(1) == labels).all()
    free = out.images[:, 0, 0, 0]
    assert float((free - model.means[label, 0]).abs().max()) < 5 * 0.05**0.5
    rest = out.images[:, :, 1:]
    assert float(root_mean_square(rest - 0.5).max()) < 0.03


def test_a_direct_denoiser_has_a_residual():
    torch.manual_seed(0)
    model = cdn.DirectDenoiser(1, width=8, blocks=(1, 1)).eval()
    torch.nn.init.normal_(model.out.weight, std=0.1)
    y = torch.rand(2, 1, 8, 8, requires_grad=True)
    f, level = blind_residual(model)(y)
    torch.testing.assert_close(y + f, cdn.denoise(model, y, 0.1))
    torch.testing.assert_close(level, f.square().mean((1, 2, 3)).sqrt())
    assert not f.requires_grad
    for options in (dict(label=1), dict(level="calibrated")):
        with pytest.raises(ValueError, match="direct denoiser"):
            blind_residual(model, **options)


def test_a_plain_classifier_has_none():
    with pytest.raises(ValueError, match="models no density"):
        blind_residual(cdn.ResNet(10, 1, width=8))(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="level: expected one of residual, calibrated, got 'bare'"):
        blind_residual(cdn.gradresnet_small(10, 1, width=8), level="bare")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(step=0.0), "step: expected a number in"),
        (dict(beta=1.5), "beta: expected a number in"),
        (dict(stop=0.0), "stop: expected a noise level above 0, got 0.0"),
        (dict(limit=0), "limit: expected at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ascend(subspace()[0], start(1), NOISE, **options)
