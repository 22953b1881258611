"""The bound that is maximized is the evidence bound, and each image trains the generator of its class alone."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from cdn.methods.synthesis import ClassGenerators, fit
from cdn.methods.synthesis.fit import evidence_bound

X, LABELS = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(5)), torch.arange(30) % 3


def trained(x=X, seed=0, **options):
    generators = ClassGenerators(3, (1, 8, 8), latents=4, width=16, sigma=0.2)
    return generators, fit(generators, x, LABELS, **dict(steps=20, batch_size=4, seed=seed) | options)


def test_the_evidence_bound_is_its_definition():
    generators = ClassGenerators(3, (2, 8, 9), latents=4, width=16).double()
    x, noise = torch.rand(5, 3, 2, 8, 9).double(), torch.randn(5, 3, 4).double()
    mean, log_variance = generators.encode(x)
    posterior = Normal(mean, log_variance.exp().sqrt())
    z = mean + noise * posterior.scale
    likelihood = Normal(generators.decode(z), generators.sigma).log_prob(x).sum((2, 3, 4))
    expected = likelihood - kl_divergence(posterior, Normal(torch.zeros_like(mean), 1.0)).sum(2)
    torch.testing.assert_close(evidence_bound(generators, x, noise), expected)


def test_it_learns():
    short, long = trained(steps=10)[1], trained(steps=100, rate=5e-3)[1]
    assert long > short + 5


def test_deterministic_by_seed():
    state = torch.get_rng_state()
    weights = [trained(seed=seed)[0].decoder[1].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_each_image_trains_the_generator_of_its_class():
    changed = torch.where(LABELS.view(-1, 1, 1, 1) == 1, 1 - X, X)
    one, other = trained()[0], trained(changed)[0]
    for a, b in zip(one.parameters(), other.parameters()):
        if a.dim():
            assert torch.equal(a[[0, 2]], b[[0, 2]]) and not torch.equal(a[1], b[1])


def test_a_learned_deviation_is_that_of_the_errors():
    generators = ClassGenerators(3, (1, 8, 8), latents=1, width=2)
    x = 0.5 + 0.1 * torch.randn(3000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    fit(generators, x, torch.arange(3000) % 3, steps=200, batch_size=16, rate=2e-2)
    torch.testing.assert_close(generators.sigma, torch.tensor(0.1), atol=0.005, rtol=0)


def test_it_trains_under_no_grad_and_leaves_no_gradient():
    with torch.no_grad():
        generators, _ = trained()
    assert all(parameter.grad is None for parameter in generators.parameters())
    assert torch.equal(generators.decoder[1].weight, trained()[0].decoder[1].weight)


def test_bad_input_gets_a_sentence():
    generators = ClassGenerators(4, (1, 8, 8), width=4)
    with pytest.raises(ValueError, match="labels: expected images of every class, found none of class 3"):
        fit(generators, X, LABELS)
    with pytest.raises(ValueError, match="labels: expected classes 0 to 3, got 0 to 12"):
        fit(generators, X, LABELS * 6)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        trained(steps=0)
    with pytest.raises(ValueError, match="rate: expected a smaller one than"):
        trained(rate=1e30)
