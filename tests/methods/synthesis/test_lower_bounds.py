"""Lower bounds against brute force where inference is exact, and the attack that is made for these classifiers."""

import math
from types import SimpleNamespace

import pytest
import torch

from cdn.methods.attacks import Ball, attack, distance
from cdn.methods.synthesis import ReconstructionClassifier, latent_descent, lower_bounds
from tests.methods.synthesis.linear_generators import LinearGenerators, exact, random_generators


def plane(seed, classes=3):
    """Classes that are lines in the plane of images with two pixels."""
    torch.manual_seed(seed)
    return random_generators(classes, (1, 1, 2), 1, sigma=0.15)


def brute_force(generators, x, label, radii, angles=360):
    """Return the smallest of the radii at which a change of this size alters the class of an image [1, 1, 2]."""
    theta = torch.linspace(0, 2 * math.pi, angles, dtype=torch.float64)
    circle = torch.stack([theta.cos(), theta.sin()], 1).view(-1, 1, 1, 2)
    for radius in radii:
        if (generators.optimum(x + radius * circle)[1].argmin(1) != label).any():
            return float(radius)
    return math.inf


@pytest.mark.parametrize("seed", range(2))
def test_no_smaller_change_alters_the_class(seed):
    generators = plane(seed)
    x = torch.rand(8, 1, 1, 2, dtype=torch.float64)
    found = exact(generators, x)
    labels = found.bound.argmax(1)
    bounds = lower_bounds(found, labels, generators.sigma)
    radii = torch.linspace(0, 1, 201, dtype=torch.float64)
    true = torch.tensor([brute_force(generators, image, label, radii) for image, label in zip(x, labels)])
    assert (bounds > 0).all() and (bounds <= true + 1e-9).all()
    assert (bounds / true).max() > 0.5


def test_exact_on_the_line_between_two_images():
    """Where classes are single images the border is known, and the bound meets it on the line through both."""
    centres = torch.tensor([[0.2, 0.3], [0.8, 0.5]]).double()
    generators = LinearGenerators(torch.zeros(2, 2, 1).double(), centres, (1, 1, 2), 0.2)
    for share in (0.0, 0.1, 0.3, 0.45):
        x = torch.lerp(centres[:1], centres[1:], share).view(1, 1, 1, 2)
        border = (0.5 - share) * float((centres[1] - centres[0]).norm())
        bound = lower_bounds(exact(generators, x), torch.tensor([0]), 0.2)
        torch.testing.assert_close(bound, torch.tensor([border]).double())
    side = torch.tensor([[0.2, 0.9]]).double().view(1, 1, 1, 2)
    assert 0 < lower_bounds(exact(generators, side), torch.tensor([0]), 0.2) < 0.2


def test_never_below_the_bound_that_ignores_the_prior_of_other_classes():
    """The bound of Schott et al. takes the nearest image of a class, however unlikely its latent."""
    generators = random_generators(latents=2)
    x = torch.rand(40, *generators.shape, dtype=torch.float64)
    found = exact(generators, x)
    labels = found.bound.argmax(1)
    basis = torch.linalg.qr(generators.weight.detach()).Q
    rest = x.flatten(1)[:, None] - generators.bias
    nearest = (rest - torch.einsum("kdl,kel,nke->nkd", basis, basis, rest)).norm(dim=2)
    square = -2 * generators.sigma**2 * found.bound.gather(1, labels[:, None])
    reach = generators.sigma * (2 * found.distances.gather(1, labels[:, None])).sqrt()
    theirs = ((nearest**2 - square) / (2 * (nearest + reach))).scatter(1, labels[:, None], torch.inf).amin(1)
    ours = lower_bounds(found, labels, generators.sigma)
    assert (ours >= theirs - 1e-12).all() and (ours > theirs + 1e-3).any()


def test_misclassified_images_have_none():
    generators = random_generators()
    x = torch.rand(9, *generators.shape, dtype=torch.float64)
    found = exact(generators, x)
    wrong = found.bound.argmin(1)
    assert (lower_bounds(found, wrong, generators.sigma) == 0).all()
    assert (lower_bounds(found, found.bound.argmax(1), generators.sigma) > 0).all()


@pytest.mark.parametrize("seed", range(2))
def test_no_attack_contradicts_a_bound(seed):
    torch.manual_seed(seed)
    generators = random_generators(4, (1, 2, 3), 2, sigma=0.2)
    x = torch.rand(20, 1, 2, 3, dtype=torch.float64)
    found = exact(generators, x)
    labels = found.bound.argmax(1)
    bounds = lower_bounds(found, labels, generators.sigma)
    fooled, images = latent_descent(SimpleNamespace(infer=lambda x: exact(generators, x)), x, labels, steps=30)
    assert fooled.float().mean() > 0.5
    assert (distance("l2", x, images)[fooled] >= bounds[fooled] - 1e-6).all()
    logits = lambda x: exact(generators, x).bound
    for image, label, bound in zip(x[:8], labels, bounds):
        assert not attack(logits, image[None], label[None], Ball("l2", 0.999 * bound.item()), steps=10).found.any()
    assert attack(logits, x, labels, Ball("l2", 4 * bounds.median().item()), steps=10).found.any()


def test_latent_descent_moves_towards_the_likeliest_wrong_class_and_back():
    centres = torch.tensor([[0.2], [0.6], [0.9]]).expand(3, 6).double()
    generators = LinearGenerators(torch.zeros(3, 6, 1).double(), centres.clone(), (1, 2, 3), 0.1)
    classifier = ReconstructionClassifier(generators, steps=0, starts=1)
    x = torch.tensor([0.2, 0.25, 0.55]).double().view(3, 1, 1, 1).expand(-1, 1, 2, 3).clone()
    labels = torch.tensor([0, 0, 0])
    before = x.clone()
    found, images = latent_descent(classifier, x, labels)
    assert found.all() and torch.equal(x, before) and torch.equal(images[2], x[2])
    torch.testing.assert_close(images[:2], torch.full_like(x[:2], 0.4), atol=1e-3, rtol=0)
    assert (classifier(images).argmax(1) == 1).all()
    found, images = latent_descent(classifier, x, labels, steps=1, share=0.01)
    assert found.tolist() == [False, False, True]
    torch.testing.assert_close(images[0], torch.full_like(x[0], 0.204))


def test_latent_descent_refuses():
    classifier = ReconstructionClassifier(random_generators())
    x, labels = torch.rand(1, 2, 2, 3), torch.tensor([0])
    with pytest.raises(ValueError, match="share: expected a number in"):
        latent_descent(classifier, x, labels, share=0.0)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        latent_descent(classifier, x, labels, steps=0)
