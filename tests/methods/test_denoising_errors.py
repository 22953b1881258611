"""Class-conditional denoising errors: the likelihoods that they integrate to where these are known."""

import math

import pytest
import torch

import cdn
from cdn.methods.denoising_errors import (
    DenoisingErrorClassifier,
    denoise_by_class,
    denoising_errors,
    integrate,
    likelihood_weight,
    noisy_copies,
)
from cdn.methods.quadrature import level_nodes
from cdn.model.density import class_scores

CLASSES, SHAPE = 3, (1, 1, 2)
D = math.prod(SHAPE)


class Mixture:
    """For each class a mixture of two isotropic Gaussians of one variance, whose denoisers are known at every level."""

    def __init__(self, variance):
        self.means = torch.rand(CLASSES, 2, D, dtype=torch.float64)
        self.weights = torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]], dtype=torch.float64)
        self.variance = variance

    def joint(self, y, sigma):
        """Log p(y, component | class), [classes, B, components]."""
        square = (y.flatten(1)[:, None] - self.means[:, None]).square().sum(3)
        variance = self.variance + sigma**2
        return self.weights[:, None].log() - square / (2 * variance) - D / 2 * math.log(2 * math.pi * variance)

    def log_density(self, y, sigma):
        return self.joint(y, sigma).logsumexp(2).T

    def denoisers(self, y, sigma):
        gain = self.variance / (self.variance + sigma**2)
        flat = y.flatten(1)[:, None]
        parts = self.means[:, None] + gain * (flat - self.means[:, None])
        return torch.einsum("cbk,cbkd->cbd", self.joint(y, sigma).softmax(2), parts).unflatten(2, SHAPE)


def measured(denoisers, x, levels, nodes=24, draws=2, noise=cdn.Noise(0)):
    return integrate(denoising_errors(denoisers, x, levels, noise, nodes=nodes, draws=draws), levels)


def test_for_gaussian_classes_the_logits_are_log_likelihoods_whatever_the_noise():
    """With one full covariance for all classes, mirrored draws leave no randomness in their differences."""
    basis, _ = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))
    covariance = basis @ torch.diag(torch.logspace(-2, 0, D, dtype=torch.float64)) @ basis.T
    means, identity = torch.rand(CLASSES, 1, D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)

    def denoisers(y, sigma):
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * identity)
        return (means + (y.flatten(1) - means) @ gain.T).unflatten(2, SHAPE)

    x = torch.rand(4, *SHAPE, dtype=torch.float64)
    logits = -measured(denoisers, x, cdn.NoiseLevels(low=1e-6, high=1e6), nodes=120, noise=cdn.Noise(5, 100))
    exact = torch.stack(
        [torch.distributions.MultivariateNormal(mean[0], covariance).log_prob(x.flatten(1)) for mean in means], 1
    )
    torch.testing.assert_close(logits.log_softmax(1), exact.log_softmax(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("low, high", [(0.05, 1.0), (0.2, 0.4)])
def test_for_mixtures_the_integral_is_a_difference_of_expected_log_densities(low, high):
    """At finite levels, for single images, each averaged over as many draws of noise as there are copies of it."""
    mixture, copies = Mixture(variance=0.02), 10_000
    for x in torch.rand(3, 1, *SHAPE, dtype=torch.float64):
        copied = x.expand(copies, *SHAPE)
        found = measured(mixture.denoisers, copied, cdn.NoiseLevels(low=low, high=high), nodes=10)
        eps = torch.randn(copied.shape, dtype=torch.float64)
        first, last = (mixture.log_density(copied + level * eps, level) for level in (low, high))
        expected = D * math.log(high / low) - first + last
        error = (found.var(0) / copies + expected.var(0) / copies).sqrt()
        assert ((found.mean(0) - expected.mean(0)).abs() < 4 * error).all() and (error < 0.03).all()


def test_for_mixtures_the_softmax_is_the_posterior():
    mixture, copies = Mixture(variance=0.02), 3000
    for x in torch.rand(3, 1, *SHAPE, dtype=torch.float64):
        logits = -measured(mixture.denoisers, x.expand(copies, *SHAPE), cdn.NoiseLevels(low=0.003, high=30.0)).mean(0)
        exact = mixture.log_density(x[None], 0)[0]
        torch.testing.assert_close(logits.softmax(0), exact.softmax(0), rtol=0, atol=0.02)


def test_mirrored_draws_are_mirrored():
    seen = [y for _, y in noisy_copies(torch.zeros(2, *SHAPE), cdn.NoiseLevels(), cdn.Noise(0), nodes=1, draws=4)]
    assert torch.equal(seen[0], -seen[1]) and torch.equal(seen[2], -seen[3]) and not torch.equal(seen[0], seen[2])


def test_the_rule_integrates_over_log_sigma():
    levels = cdn.NoiseLevels(low=0.1, high=2.0)
    sigma = torch.tensor([node for node, _ in level_nodes(levels, 12)], dtype=torch.float64)
    errors = (3 * sigma**2)[:, None, None].expand(12, 5, 1)
    torch.testing.assert_close(integrate(errors, levels), torch.tensor([3 * math.log(20)]).double())
    torch.testing.assert_close(integrate(errors, levels, lambda sigma: 1.0), torch.tensor([1.5 * (4 - 0.01)]).double())


def small_model():
    return cdn.gradresnet_small(CLASSES, 1, width=8).double()


def test_all_classes_at_once_are_the_classes_one_by_one():
    model, y = small_model(), torch.rand(4, 1, 6, 5, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.2, 0.5, 1.0], dtype=torch.float64)
    for c, (score, denoised) in enumerate(zip(class_scores(model, y), denoise_by_class(model, y, sigma))):
        torch.testing.assert_close(score, cdn.score(model, y, c))
        torch.testing.assert_close(denoised, cdn.denoise(model, y, sigma, c))
    with torch.inference_mode():
        assert not denoise_by_class(model, torch.rand(2, 1, 6, 5).double(), 0.1).requires_grad


def test_its_gradient_goes_through_the_denoisers():
    model = small_model()
    classifier = DenoisingErrorClassifier(model, nodes=2, draws=1, temperature=10)
    x = torch.rand(1, 1, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: classifier(x, cdn.Noise(3)), x)
    with torch.no_grad():
        assert not classifier(x, cdn.Noise(3)).requires_grad
    assert not classifier(x.detach(), cdn.Noise(3)).requires_grad and all(p.grad is None for p in model.parameters())


def test_temperature_and_weight():
    model, x = small_model(), torch.rand(2, 1, 6, 5, dtype=torch.float64)
    logits = lambda **options: DenoisingErrorClassifier(model, nodes=3, draws=1, **options)(x, cdn.Noise(0, 9))
    torch.testing.assert_close(logits(temperature=4.0), logits() / 4)
    torch.testing.assert_close(logits(weight=lambda sigma: 2 * likelihood_weight(sigma)), 2 * logits())
    assert not torch.allclose(logits(weight=lambda sigma: 1.0), logits())


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: DenoisingErrorClassifier(cdn.ResNet(3, 1, width=8)), "denoises given a class, got a ResNet"),
        (
            lambda: DenoisingErrorClassifier(cdn.DirectDenoiser(1, width=8)),
            "denoises given a class, got a DirectDenoiser",
        ),
        (lambda: DenoisingErrorClassifier(small_model(), nodes=0), "nodes: expected at least 1, got 0"),
        (lambda: DenoisingErrorClassifier(small_model(), draws=0), "draws: expected at least 1, got 0"),
        (lambda: DenoisingErrorClassifier(small_model(), temperature=0.0), "temperature must be a number above 0"),
    ],
)
def test_bad_input_gets_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
