"""Latents made standard, searches with a density of any strength, and judges: against linear generators."""

import pytest
import torch

import cdn
import cdn_kernels
from cdn.methods.detection.detectors import TYPICALITY, gather, rate
from cdn.methods.synthesis import infer
from cdn.methods.synthesis.outside import Arbiter, StandardLatents, reconstruct, weakest
from tests.methods.synthesis.linear_generators import LinearGenerators, random_generators

SHAPE = (2, 2, 3)


class Encoded(LinearGenerators):
    """Linear generators with encoders that are linear too, and uncertain by different amounts."""

    def __init__(self, classes=2, latents=3):
        weight = torch.randn(classes, 12, latents, dtype=torch.float64)
        super().__init__(weight, torch.rand(classes, 12, dtype=torch.float64), SHAPE, 0.3)
        self.inverse = torch.linalg.pinv(weight)
        self.log_variance = torch.randn(classes, latents, dtype=torch.float64)

    def encode(self, x):
        mean = torch.einsum("kld,nkd->nkl", self.inverse, x.flatten(1)[:, None] - self.bias)
        return mean, self.log_variance.expand_as(mean)


def data(count=40):
    return torch.rand(count, *SHAPE, dtype=torch.float64), torch.arange(count) % 2


def test_standard_latents_of_the_training_are_standard():
    generators, (x, labels) = Encoded(), data()
    standard = StandardLatents(generators, x, labels)
    for c in range(2):
        mean, log_variance = (values[labels == c, c] for values in standard.encode(x))
        torch.testing.assert_close(mean.mean(0), torch.zeros(3, dtype=torch.float64))
        covariance = mean.T @ mean / len(mean)
        # What encode says of the spread is the diagonal alone.
        total = covariance.diagonal() + log_variance.exp().mean(0)
        torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64))


def test_standard_latents_make_the_same_images():
    generators, (x, labels) = Encoded(), data()
    standard = StandardLatents(generators, x, labels)
    torch.testing.assert_close(standard.decode(standard.encode(x)[0]), generators.decode(generators.encode(x)[0]))
    assert (standard.classes, standard.latents, standard.sigma) == (2, 3, generators.sigma)


def test_their_length_is_the_mahalanobis_distance():
    generators, (x, labels) = Encoded(), data()
    standard = StandardLatents(generators, x, labels)
    z = generators.encode(x)[0][labels == 1, 1]
    covariance = torch.cov(z.T, correction=0) + generators.log_variance[1].exp().diag()
    distance = torch.einsum("nl,lm,nm->n", z - z.mean(0), torch.linalg.inv(covariance), z - z.mean(0))
    torch.testing.assert_close(standard.encode(x)[0][labels == 1, 1].square().sum(1), distance)


@pytest.mark.parametrize("strength", [0.01, 1.0, 5.0])
def test_the_strength_of_the_density_is_that_of_the_closed_form(strength):
    generators, x = random_generators(classes=1), torch.rand(5, *SHAPE, dtype=torch.float64)
    made, energy = reconstruct(generators, strength, x, steps=300, rate=0.3, starts=1)
    weak = LinearGenerators(generators.weight, generators.bias, SHAPE, float(generators.sigma) * strength**0.5)
    z, square = weak.optimum(x)
    torch.testing.assert_close(made, generators.decode(z)[:, 0].detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(energy, square[:, 0].detach() / (2 * generators.sigma**2), rtol=1e-6, atol=0)


def test_the_best_class_reconstructs():
    generators, x = random_generators(), torch.rand(6, *SHAPE, dtype=torch.float64)
    made, energy = reconstruct(generators, 1.0, x, steps=5)
    found = infer(generators, x, steps=5)
    best = found.bound.argmax(1)
    assert len(best.unique()) > 1
    torch.testing.assert_close(made, found.reconstructions[range(6), best])
    torch.testing.assert_close(energy, -found.bound.amax(1))


def test_the_arbiter_rates_as_detection_does():
    model = cdn.gradresnet_small(3, 2, width=8).double()
    x, reference = torch.rand(5, 2, 6, 6).double(), torch.rand(7, 2, 6, 6).double()
    keys = cdn.Noise(1), cdn.Noise(2)
    noisy = [
        gather(model, images + 0.1 * cdn_kernels.reference.standard_normal(images.shape, key, torch.float64))
        for images, key in zip((x, reference), keys)
    ]
    arbiter = Arbiter(model, reference, 0.1, keys[1], batch_size=3)
    torch.testing.assert_close(arbiter(x, keys[0]), rate(*noisy)[TYPICALITY])


def test_the_weakest_rating_decides():
    ratings = [torch.tensor([1.0, 5.0]), torch.tensor([30.0, 10.0])]
    reference = [torch.tensor([0.0, 2.0]), torch.tensor([0.0, 40.0])]  # means 1 and 20
    expected = torch.tensor([0.0, -10 / (20 * 2**0.5)], dtype=torch.float64)
    torch.testing.assert_close(weakest(ratings, reference), expected)


def test_bad_input_gets_a_sentence():
    x, _ = data()
    with pytest.raises(ValueError, match="expected images of every class, found none of class 1"):
        StandardLatents(Encoded(), x, torch.zeros(len(x), dtype=torch.int64))
    with pytest.raises(ValueError, match="strength must be a number above 0, got 0"):
        reconstruct(Encoded(), 0, x)
