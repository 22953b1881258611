"""The classifier: its gradient is that of the optimum, attacks work on it, and its probabilities doubt the unknown."""

import pytest
import torch
import torch.nn.functional as F

from cdn.methods.attacks import Ball, attack
from cdn.methods.synthesis import ClassGenerators, ReconstructionClassifier
from tests.methods.synthesis.linear_generators import LinearGenerators, random_generators


def numeric_gradient(function, x, step=1e-3):
    """Return the gradients by x [N, ...] of a function that gives one value per sample, by central differences."""
    shifts = step * torch.eye(x[0].numel(), dtype=x.dtype).view(-1, 1, *x.shape[1:])
    values = [function((x + sign * shifts).flatten(0, 1)).view(-1, len(x)) for sign in (1, -1)]
    return ((values[0] - values[1]) / (2 * step)).T.reshape(x.shape)


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


@pytest.mark.parametrize("nonlinear", [False, True])
def test_the_gradient_of_logits_is_that_of_the_optimum(nonlinear):
    """Finite differences search for the latents anew at every point: the envelope theorem says it does not matter."""
    generators = random_generators(shape=(1, 2, 2))
    if nonlinear:
        generators = ClassGenerators(3, (1, 2, 2), latents=2, width=8, sigma=0.3).double()
    classifier = ReconstructionClassifier(generators, steps=300, starts=1)
    classifier.scale.fill_(0.5)
    x = torch.rand(2, 1, 2, 2, dtype=torch.float64)
    weights = torch.randn(3, dtype=torch.float64)
    objective = lambda x: classifier(x) @ weights
    torch.testing.assert_close(gradient(objective, x), numeric_gradient(objective, x), atol=1e-4, rtol=1e-3)


def test_logits_are_the_scaled_bound_with_or_without_a_graph():
    classifier = ReconstructionClassifier(random_generators(), steps=5)
    classifier.scale.fill_(0.25)
    x = torch.rand(3, 2, 2, 3, dtype=torch.float64)
    logits = classifier(x)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, 0.25 * classifier.infer(x).bound)
    torch.testing.assert_close(classifier(x.clone().requires_grad_()).detach(), logits)


def test_another_distance_reaches_the_gradient():
    distance = lambda x, r: (x.view(len(x), *[1] * (r.dim() - 4), *x.shape[1:]) - r).abs().flatten(-3).sum(-1)
    classifier = ReconstructionClassifier(random_generators(), distance, steps=0, starts=1)
    x = torch.rand(2, 2, 2, 3, dtype=torch.float64)
    signs = (x - classifier.infer(x).reconstructions[:, 1]).sign()
    torch.testing.assert_close(gradient(lambda x: classifier(x)[:, 1], x), -signs)


def test_attacks_find_what_is_there_and_nothing_nearer():
    """Two classes of one image each: the border is half way."""
    centres = torch.stack([torch.full((12,), 0.3), torch.full((12,), 0.7)]).double()
    generators = LinearGenerators(torch.zeros(2, 12, 1).double(), centres, (1, 3, 4), 0.1)
    classifier = ReconstructionClassifier(generators, steps=2)
    x, labels = centres.view(2, 1, 3, 4), torch.arange(2)
    far, near = (
        attack(classifier, x, labels, Ball("l2", radius), steps=10).found
        for radius in (1.02 * 0.2 * 12**0.5, 0.98 * 0.2 * 12**0.5)
    )
    assert far.all() and not near.any()


def test_probabilities_are_even_where_no_class_explains_the_image():
    classifier = ReconstructionClassifier(random_generators(sigma=0.1), steps=20)
    x = torch.rand(6, 2, 2, 3, dtype=torch.float64)
    assert torch.allclose(classifier.posterior(x), classifier(x).softmax(1))
    bound = classifier.infer(x).bound
    classifier.log_eta.fill_(float(bound.median()))
    expected = bound.exp() + classifier.log_eta.exp()
    posterior = classifier.posterior(x)
    torch.testing.assert_close(posterior, expected / expected.sum(1, keepdim=True))
    assert (posterior.gather(1, bound.argsort(1)).diff(dim=1) >= 0).all()
    torch.testing.assert_close(classifier.posterior(x + 9), torch.full_like(posterior, 1 / 3))


def test_calibration_reaches_the_least_cross_entropy():
    generators = random_generators(sigma=0.05)
    x, labels = torch.rand(200, 2, 2, 3, dtype=torch.float64), torch.arange(200) % 3
    z = torch.randn(200, 3, 2, dtype=torch.float64)
    x = 0.35 * x + 0.65 * generators.decode(z)[torch.arange(200), labels].detach()
    classifier = ReconstructionClassifier(generators, steps=20)
    loss = classifier.calibrate(x, labels)
    bound = classifier.infer(x).bound
    tried = [
        F.nll_loss(torch.logaddexp(scale * bound, torch.tensor(eta).double()).log_softmax(1), labels)
        for scale in torch.logspace(-4, 1, 60)
        for eta in torch.linspace(-60, 5, 60).tolist()
    ]
    assert loss < float(min(tried)) + 1e-3
    torch.testing.assert_close(F.nll_loss(classifier.posterior(x).log(), labels).item(), loss, atol=1e-5, rtol=0)
    assert classifier.state_dict().keys() >= {"scale", "log_eta"}
