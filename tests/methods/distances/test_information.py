"""The information-estimation distance: what is known of it for Gaussians, and that it is a distance."""

import math

import pytest
import torch

import cdn
from cdn.methods.distances.information import information_estimation_distance
from cdn_kernels import standard_normal

SHAPE = (1, 3, 2)


def gaussian():
    """A covariance S [d, d] of widely spread variances, and the optimal denoiser at any level."""
    d = math.prod(SHAPE)
    basis, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))
    covariance = basis @ torch.diag(torch.logspace(-3, 1, d, dtype=torch.float64)) @ basis.T
    mean, identity = torch.rand(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)

    def denoiser(y, sigma):
        noise = sigma.square().view(-1, 1, 1) * identity
        gain = covariance @ torch.linalg.inv(covariance + noise)
        return (mean + torch.einsum("bij,bj->bi", gain, y.flatten(1) - mean)).view_as(y)

    return covariance, denoiser


def pairs():
    return torch.rand(2, 4, *SHAPE, dtype=torch.float64)


def quadratic(matrix, difference):
    v = difference.flatten(1)
    return torch.einsum("bi,ij,bj->b", v, matrix, v)


def test_for_a_gaussian_it_is_the_mahalanobis_distance():
    covariance, denoiser = gaussian()
    a, b = pairs()
    found = information_estimation_distance(denoiser, a, b, levels=cdn.NoiseLevels(low=1e-6, high=1e6), nodes=200)
    expected = quadratic(torch.linalg.inv(covariance), a - b).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("low, high", [(0.01, 1.0), (0.1, 0.5), (0.3, 30.0)])
def test_between_two_levels_it_is_the_difference_of_two(low, high):
    covariance, denoiser = gaussian()
    a, b = pairs()
    found = information_estimation_distance(denoiser, a, b, levels=cdn.NoiseLevels(low=low, high=high), nodes=32)
    identity = torch.eye(len(covariance), dtype=torch.float64)
    matrix = torch.linalg.inv(covariance + low**2 * identity) - torch.linalg.inv(covariance + high**2 * identity)
    torch.testing.assert_close(found, quadratic(matrix, a - b).sqrt(), rtol=1e-6, atol=0)


def test_it_compares_scores_of_a_model():
    """Against its definition by scores, summed over a fine grid of levels."""
    model = cdn.gradresnet_small(3, 1, width=8).double()
    a, b = torch.rand(2, 2, 1, 6, 6, dtype=torch.float64)
    levels = cdn.NoiseLevels(low=0.2, high=0.8)

    def denoise_without_noise(y, sigma):
        """The level's denoiser at the images themselves: the noise is taken out, so that grid and nodes may differ."""
        clean = torch.cat([a, b])
        return clean + sigma.view(-1, 1, 1, 1).square() * cdn.score(model, clean)

    found = information_estimation_distance(denoise_without_noise, a, b, levels=levels)
    gap = (cdn.score(model, a) - cdn.score(model, b)).square().sum((1, 2, 3))
    torch.testing.assert_close(found.square(), gap * (0.8**2 - 0.2**2), rtol=1e-9, atol=0)
    one = cdn.similarity(model, a, b, levels=levels, nodes=1, noise=cdn.Noise(3, 5))
    sigma = 0.4  # the middle of log sigma
    eps = sigma * standard_normal(a.shape, cdn.Noise(3, 5), dtype=torch.float64)
    gap = (cdn.score(model, a + eps) - cdn.score(model, b + eps)).square().sum((1, 2, 3))
    torch.testing.assert_close(one.square(), math.log(4) * 2 * sigma**2 * gap, rtol=1e-9, atol=0)


def test_every_node_and_draw_has_noise_of_its_own():
    a, seen = torch.zeros(3, *SHAPE, dtype=torch.float64), []

    def denoiser(y, sigma):
        seen.append(y / sigma.view(-1, 1, 1, 1))
        return y

    information_estimation_distance(denoiser, a, a, nodes=3, draws=2, noise=cdn.Noise(3, 5))
    for i, eps in enumerate(seen):
        expected = standard_normal(a.shape, cdn.Noise(3, 5 + i), dtype=torch.float64)
        torch.testing.assert_close(eps, torch.cat([expected, expected]))
    assert len(seen) == 6


def test_draws_are_averaged():
    model = cdn.gradresnet_small(3, 1, width=8).double()
    a, b = torch.rand(2, 2, 1, 5, 5, dtype=torch.float64)
    square = lambda key, draws: cdn.similarity(model, a, b, nodes=1, draws=draws, noise=cdn.Noise(1, key)).square()
    torch.testing.assert_close(square(0, 2), (square(0, 1) + square(1, 1)) / 2)


def test_it_is_a_distance():
    model = cdn.gradresnet_small(3, 1, width=8).double()
    a, b, c = torch.rand(3, 3, 1, 5, 5, dtype=torch.float64)
    d = lambda a, b: cdn.similarity(model, a, b, nodes=2, draws=2)
    assert (d(a, a) < 1e-12 * d(a, b)).all()
    torch.testing.assert_close(d(a, b), d(b, a))
    assert (d(a, c) <= d(a, b) + d(b, c)).all()
    with torch.no_grad():
        assert torch.equal(d(a, b), cdn.similarity(model, a, b, nodes=2, draws=2))


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(b=torch.rand(2, 1, 6, 5)), r"of one shape, got \[2, 1, 6, 6\] and \[2, 1, 6, 5\]"),
        (dict(nodes=0), "nodes: expected at least 1, got 0"),
        (dict(draws=0), "draws: expected at least 1"),
        (dict(model=cdn.ResNet(3, 1, width=8)), "models no density"),
    ],
)
def test_bad_input_gets_a_sentence(options, sentence):
    arguments = dict(model=cdn.gradresnet_small(3, 1, width=8), a=torch.rand(2, 1, 6, 6), b=torch.rand(2, 1, 6, 6))
    with pytest.raises(ValueError, match=sentence):
        cdn.similarity(**arguments | options)
