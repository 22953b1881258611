"""A frozen classifier behind a denoiser: gradients go through, weights stay, and the steps follow the known flow."""

import pytest
import torch
import torch.nn.functional as F

import cdn
import cdn_kernels
from cdn.methods.smoothing import LevelVote, protected

SIGMA = 0.3


def density():
    return cdn.gradresnet_small(4, 2, width=8).double()


def classifier():
    return cdn.ResNet(4, 2, width=8, blocks=(1, 1)).double()


def test_it_denoises_then_classifies():
    model, resnet = density(), classifier()
    y = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    expected = resnet.eval()(cdn.denoise(model, y, SIGMA))
    assert torch.equal(cdn.Protected(resnet, model, SIGMA)(y), expected)
    direct = cdn.DirectDenoiser(2, width=8).double()
    torch.nn.init.normal_(direct.out.weight)
    assert torch.equal(cdn.Protected(resnet, direct, SIGMA)(y), resnet(y - direct(y)))


def test_it_takes_the_steps_it_was_made_with_and_freezes_the_classifier_at_once():
    resnet = classifier()
    module = cdn.Protected(resnet, density(), SIGMA, steps=3)
    assert not resnet.training
    y = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    assert torch.equal(module(y), resnet(module.purify(y, 3)))
    assert not torch.allclose(module.purify(y), module.purify(y, 1))


def test_its_gradient_goes_through_the_score():
    module = cdn.Protected(classifier(), density(), SIGMA)
    y = torch.rand(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, y)
    with torch.no_grad():
        assert not module(y).requires_grad


def test_the_classifier_is_frozen():
    model, resnet = density(), classifier()
    module = cdn.Protected(resnet, model, SIGMA).train()
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    y = torch.rand(3, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(module(y), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    assert all(p.grad is None and p.requires_grad for p in resnet.parameters())
    assert any(p.grad is not None for p in model.parameters()) and y.grad.abs().max() > 0
    assert all(torch.equal(before[name], value) for name, value in resnet.state_dict().items())
    assert model.training and not resnet.training


@pytest.mark.parametrize("variance", [0.01, 0.5])
def test_many_steps_follow_the_flow_of_a_gaussian(monkeypatch, variance):
    """The deterministic flow from level sigma to 0 scales a Gaussian's values by sqrt(s / (s + sigma^2))."""
    denoise = lambda model, y, level, create_graph: y * variance / (variance + level**2)
    monkeypatch.setattr(protected, "denoise", denoise)
    module = cdn.Protected(classifier(), density(), SIGMA)
    y = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(module.purify(y), y * variance / (variance + SIGMA**2))
    exact = y * (variance / (variance + SIGMA**2)) ** 0.5
    errors = [float((module.purify(y, steps) - exact).norm()) for steps in (4, 16, 2000)]
    assert errors[0] > 2 * errors[1] and errors[2] < 1e-3 * float(y.norm())


def test_it_is_certified_like_any_classifier():
    module = cdn.Protected(classifier(), density(), SIGMA, steps=2)
    x = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    found = cdn.certify(module, x, SIGMA, 10, 50, 0.01)
    assert (found.draws <= 60).all() and (found.radius >= 0).all()


def test_the_vote_over_levels_is_its_formula():
    model, resnet = density(), classifier().eval()
    sigmas = [0.1, 0.2, 0.4]
    reference, x = torch.rand(20, 2, 6, 6).double(), torch.rand(5, 2, 6, 6).double()
    vote = LevelVote(resnet, model, sigmas, reference, cdn.Noise(1, 10))
    total, norm = 0, 0
    for k, sigma in enumerate(sigmas):
        clean = reference + sigma * cdn_kernels.standard_normal(
            reference.shape, cdn.Noise(1, 10 + k), dtype=torch.float64
        )
        y = x + sigma * cdn_kernels.standard_normal(x.shape, cdn.Noise(2, 30 + k), dtype=torch.float64)
        known = cdn.log_prob(model, clean)
        weight = torch.exp(-((cdn.log_prob(model, y) - known.mean()) / known.std()).square() / 2)[:, None]
        total = total + weight * resnet(cdn.denoise(model, y, sigma)).softmax(1)
        norm = norm + weight
    torch.testing.assert_close(vote(x, cdn.Noise(2, 30)).exp(), total / norm)


def test_the_vote_has_a_gradient_through_weights_and_denoisers():
    vote = LevelVote(classifier(), density(), [0.2, 0.4], torch.rand(8, 2, 3, 2).double(), cdn.Noise(0))
    x = torch.rand(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: vote(x, cdn.Noise(5)), x)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: cdn.Protected(classifier(), classifier(), SIGMA), "expected one that denoises, got a ResNet"),
        (lambda: cdn.Protected(cdn.DirectDenoiser(2, width=8), density(), SIGMA), "expected one that classifies"),
        (lambda: cdn.Protected(classifier(), density(), 0.0), "sigma must be a number above 0, got 0.0"),
        (lambda: cdn.Protected(classifier(), density(), SIGMA, steps=0), "steps: expected at least 1, got 0"),
        (
            lambda: cdn.Protected(classifier(), density(), SIGMA).purify(torch.rand(1, 2, 4, 4), 0),
            "steps: expected at least 1",
        ),
        (
            lambda: LevelVote(classifier(), density(), [], torch.rand(3, 2, 4, 4), cdn.Noise(0)),
            "sigmas must name at least",
        ),
        (
            lambda: LevelVote(classifier(), density(), [0.1], torch.rand(1, 2, 4, 4), cdn.Noise(0)),
            "at least 2 reference",
        ),
    ],
)
def test_bad_input_gets_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
