"""Restoration, on priors whose posterior is known."""

import pytest
import torch

import cdn
from cdn.methods.prior.inverse_problems import constrained, restore
from cdn.methods.prior.operators import CompressiveSensing, Deblurring, Inpainting, MissingPixels, SuperResolution
from cdn.methods.prior.residual import root_mean_square

NOISE, SHAPE = cdn.Noise(2), (1, 8, 8)
OPERATORS = [
    Inpainting(SHAPE, 4),
    MissingPixels(SHAPE, 0.5),
    SuperResolution(SHAPE, 2),
    Deblurring(SHAPE, 0.8),
    CompressiveSensing(SHAPE, 0.5),
]
names = lambda operator: type(operator).__name__


def covariance(length=1.0, deviation=0.3):
    """The covariance [64, 64] of smooth random images."""
    place = torch.cartesian_prod(torch.arange(8), torch.arange(8)).double()
    return deviation**2 * torch.exp(-0.5 * torch.cdist(place, place).square() / length**2)


def gaussian_residual(mean, covariance, operator, m):
    """The residual of a Gaussian prior, at the noise level that the measured part of y shows."""
    values, vectors = torch.linalg.eigh(covariance)

    def residual(y, sigma=None):
        part = operator.pinv(m) - operator.project(y)
        square = part.square().flatten(1).sum(1, keepdim=True) / operator.size
        away = (y - mean).flatten(1) @ vectors
        return (-square / (values + square) * away @ vectors.T).view_as(y), square[:, 0].sqrt()

    return residual


@pytest.mark.parametrize("operator", OPERATORS, ids=names)
def test_the_mean_of_restorations_of_a_gaussian_prior(operator):
    """Posterior mean: mu + C P (P C P)^+ (A^+ m - P mu), P = A^+ A."""
    c = covariance()
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + (torch.linalg.cholesky(c + 1e-9 * torch.eye(64)) @ torch.randn(64, generator=generator).double())
    m = operator.forward(x.view(1, *SHAPE))
    p = operator.project(torch.eye(64, dtype=torch.float64).view(64, *SHAPE)).flatten(1)
    known = operator.pinv(m).flatten()
    gain = c @ p @ torch.linalg.pinv(p @ c @ p, rtol=1e-9, hermitian=True)
    expected = (0.5 + gain @ (known - 0.5 * p.sum(1))).view(1, *SHAPE)
    deviation = float((c - gain @ p @ c).diagonal().clamp(min=0).mean().sqrt())

    m = m.expand(50, *m.shape[1:])
    out = restore(gaussian_residual(0.5, c, operator, m), operator, m, NOISE, step=0.1, beta=0.1, limit=500)
    assert out.finished.all() and out.steps < 100
    torch.testing.assert_close(operator.forward(out.images), m, rtol=0, atol=1e-12)
    error = lambda images: float(root_mean_square(images - expected).mean())
    # The mean is not exact, as the algorithm is not; but it is near, on the scale of what the measurements leave open:
    # between 0.30 and 0.66 of it for 16 seeds of random measurements.
    mean, single = error(out.images.mean(0, keepdim=True)), error(out.images)
    assert mean < 0.75 * deviation and mean < 0.6 * error(operator.grey(m)) and mean < 0.6 * single
    assert 0.6 * deviation < single < 1.4 * deviation


def test_a_network_that_errs_cannot_run_away():
    """A residual that points outward, as networks may beyond the noise levels they know, leaves the level falling."""
    operator = MissingPixels(SHAPE, 0.3)
    m = operator.forward(torch.rand(4, *SHAPE, dtype=torch.float64))
    out = restore(lambda y, sigma=None: (0.1 * y, None), operator, m, NOISE, beta=0.5, limit=200)
    assert out.finished.all()
    torch.testing.assert_close(operator.forward(out.images), m, rtol=0, atol=1e-9)


def test_a_prior_of_independent_values_is_kept():
    """Where the measured values tell nothing of the others, these keep their prior: mean 0.2, deviation 0.1.

    The deviation comes out smaller: |d| misses the noise that the denoiser cannot see, so too little is put back.
    """
    operator = Inpainting(SHAPE, 4)
    m = torch.rand(400, *operator.forward(torch.zeros(1, *SHAPE)).shape[1:], dtype=torch.float64)
    residual = gaussian_residual(0.2, 0.1**2 * torch.eye(64, dtype=torch.float64), operator, m)
    out = restore(residual, operator, m, NOISE, step=0.02, beta=0.1, stop=0.003)
    hole = out.images[:, :, 2:6, 2:6]
    assert float(hole.mean()) == pytest.approx(0.2, abs=0.005) and 0.07 < float(hole.std()) < 0.1


def test_the_residual_is_that_of_algorithm_2():
    """(I - M M^T) f + M (x_c - M^T y) with orthonormal columns M."""
    operator = CompressiveSensing(SHAPE, 0.5)
    columns = operator.forward(torch.eye(64, dtype=torch.float64).view(64, *SHAPE))
    x, y = torch.rand(2, 3, *SHAPE, dtype=torch.float64)
    f = torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1, 1) * torch.randn_like(y)
    d, level = constrained(lambda y, sigma=None: (f, None), operator, operator.forward(x))(y)
    flat = f.flatten(1)
    expected = flat - flat @ columns @ columns.T + (x.flatten(1) @ columns - y.flatten(1) @ columns) @ columns.T
    torch.testing.assert_close(d.flatten(1), expected)
    shown = ((x - y).flatten(1) @ columns).square().mean(1).sqrt()
    torch.testing.assert_close(level, torch.minimum(expected.square().mean(1).sqrt(), shown))


@pytest.mark.parametrize("operator", OPERATORS, ids=names)
def test_a_prior_of_one_image_is_restored(operator):
    x = torch.rand(1, *SHAPE)
    residual = lambda y, sigma=None: (x - y, root_mean_square(x - y))
    out = restore(residual, operator, operator.forward(x).expand(3, *operator.forward(x).shape[1:]), NOISE, beta=0.5)
    torch.testing.assert_close(out.images, x.expand_as(out.images), rtol=0, atol=1e-5)


def test_the_key_decides():
    operator = MissingPixels(SHAPE, 0.3)
    m = operator.forward(torch.rand(2, *SHAPE, dtype=torch.float64))
    residual = gaussian_residual(0.5, covariance(), operator, m)
    first, again, other = (restore(residual, operator, m, cdn.Noise(seed), beta=0.5).images for seed in (1, 1, 2))
    assert torch.equal(first, again) and float((first - other).abs().max()) > 0.05


def test_bad_options():
    operator = SuperResolution(SHAPE, 2)
    with pytest.raises(ValueError, match=r"beta: expected a number in \(0, 1\], got 2"):
        restore(lambda y, sigma=None: (-y, y.flatten(1).norm(dim=1)), operator, torch.rand(1, 1, 4, 4), NOISE, beta=2)
