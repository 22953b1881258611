"""Certificates against classifiers whose smoothed version is known in closed form."""

import math
import warnings

import pytest
import torch
from scipy import stats
from torch import nn

import cdn
from cdn.errors import CDNError
from cdn.methods.smoothing import ABSTAIN, largest_radius, predict_smoothed
from cdn.methods.smoothing import certificate as smoothing
from cdn.methods.smoothing.binomial import fewest_for_majority

SIGMA = 0.25


class Linear(nn.Module):
    """Two classes on either side of a hyperplane: smoothing leaves it where it is."""

    def __init__(self, shape=(1, 4, 4)):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.seen = []

    def forward(self, y):
        self.seen.append((len(y), self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        value = (y * self.weight).sum((1, 2, 3))
        return torch.stack([-value, value], 1)

    def distance(self, x):
        """The signed distance to the hyperplane: the true radius and, by its sign, the class."""
        return ((x * self.weight).sum((1, 2, 3)) / self.weight.norm()).detach()

    def at(self, distances):
        """Return images at given signed distances from the hyperplane."""
        x = torch.randn(len(distances), *self.weight.shape)
        direction = self.weight.detach() / self.weight.detach().norm()
        return x + (torch.tensor(distances) - self.distance(x)).view(-1, 1, 1, 1) * direction


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))

    def forward(self, y):
        return self.logits.expand(len(y), 3)


def test_the_radius_of_a_linear_classifier_approaches_its_closed_form_from_below():
    model = Linear()
    distances = [0.15, -0.25, 0.4]
    x = model.at(distances)
    gaps = []
    for n in (100, 1000, 40_000):
        found = cdn.certify(model, x, SIGMA, 20, n, 0.001)
        assert found.label.tolist() == [1, 0, 1] and (found.draws == n + 20).all()
        gaps.append(torch.tensor(distances).abs() - found.radius)
        assert (gaps[-1] > 0).all()
        assert (found.lower < torch.tensor([stats.norm.cdf(abs(d) / SIGMA) for d in distances])).all()
    assert (gaps[0] > gaps[1]).all() and (gaps[1] > gaps[2]).all() and float(gaps[2].max()) < 0.01


def test_a_radius_is_too_large_no_more_often_than_alpha_says():
    model = Linear()
    x = model.at([0.2] * 600)
    found = cdn.certify(model, x, SIGMA, 10, 50, 0.2)
    wrong = float(((found.label != ABSTAIN) & ((found.label != 1) | (found.radius > 0.2))).double().mean())
    assert 0.05 < wrong < 0.2 + 3 * math.sqrt(0.2 * 0.8 / 600)


def test_the_worst_perturbation_within_the_radius_leaves_the_prediction():
    model = Linear()
    x = model.at([0.15, -0.3, 0.5])
    found = cdn.certify(model, x, SIGMA, 20, 2000, 0.001)
    direction = (model.weight / model.weight.norm()).detach() * torch.tensor([-1.0, 1.0, -1.0]).view(-1, 1, 1, 1)
    inside = x + found.radius.float().view(-1, 1, 1, 1) * direction
    labels = predict_smoothed(model, inside, SIGMA, 5000, 0.001)
    assert ((labels == found.label) | (labels == ABSTAIN)).all()
    beyond = x + 1.3 * model.distance(x).abs().view(-1, 1, 1, 1) * direction
    assert predict_smoothed(model, beyond, SIGMA, 5000, 0.001).tolist() == [0, 1, 0]


def test_a_constant_classifier_is_certified_everywhere_at_the_largest_radius():
    x = torch.rand(3, 1, 5, 5)
    found = cdn.certify(Constant(), x, 0.5, 3, 100, 0.001)
    expected = 0.5 * stats.norm.ppf(stats.beta.ppf(0.001, 100, 1))
    assert found.label.tolist() == [2] * 3 and found.radius.tolist() == pytest.approx([expected] * 3, rel=1e-12)
    assert largest_radius(0.5, 100, 0.001) == pytest.approx(expected, rel=1e-12)
    assert predict_smoothed(Constant(), x, 0.5, 20).tolist() == [2] * 3


def test_it_abstains_on_the_boundary_and_stops_where_no_draw_could_change_that():
    model = Linear()
    x = model.at([0.0] * 20)
    found = cdn.certify(model, x, SIGMA, 10, 1000, 0.001, batch_size=50)
    assert (found.label == ABSTAIN).all() and not found.radius.any() and not found.lower.any()
    assert (found.draws < 1010).all()
    assert (predict_smoothed(model, x, SIGMA, 100) == ABSTAIN).all()


def test_stopping_early_gives_the_verdict_of_all_draws(monkeypatch):
    model = Linear()
    x = model.at([0.04 * k / 20 for k in range(20)])
    early = cdn.certify(model, x, SIGMA, 10, 600, 0.05, batch_size=40)
    monkeypatch.setattr(smoothing, "fewest_for_majority", lambda n, alpha: -n)  # never stop
    late = cdn.certify(model, x, SIGMA, 10, 600, 0.05)
    assert (late.draws == 610).all() and (early.draws < 610).any() and (early.label >= 0).any()
    assert torch.equal(early.label == ABSTAIN, late.lower <= 0.5)
    certified = early.label != ABSTAIN
    assert torch.equal(early.label[certified], late.label[certified])
    assert torch.equal(early.radius[certified], late.radius[certified])


@pytest.mark.parametrize("batch_size", [1, 7, 37])
def test_noise_has_a_name_whatever_the_batch_and_the_part(batch_size):
    model = Linear()
    x = model.at([0.1, 0.2, 0.3, 0.1])
    whole = cdn.certify(model, x, SIGMA, 30, 700, 0.01)
    again = cdn.certify(model, x, SIGMA, 30, 700, 0.01, batch_size=batch_size)
    assert all(torch.equal(a, b) for a, b in zip(whole, again))
    parts = [cdn.certify(model, x[i : i + 2], SIGMA, 30, 700, 0.01, first=i) for i in (0, 2)]
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*parts)))
    assert not torch.equal(whole.radius, cdn.certify(model, x, SIGMA, 30, 700, 0.01, seed=1).radius)


def test_all_draws_of_all_images_differ(monkeypatch):
    """The noise of guesses, estimates and images is drawn from keys that no two of them share."""
    keys = []
    draw = smoothing.cdn_kernels.sample_noise
    monkeypatch.setattr(smoothing.cdn_kernels, "sample_noise", lambda x, s, key: keys.append(key) or draw(x, s, key))
    cdn.certify(Constant(), torch.rand(3, 1, 2, 2), SIGMA, 300, 600, 0.01)
    assert len(keys) == 3 * (2 + 3) == len(set(keys))


def test_too_few_draws_for_alpha_are_announced():
    x = torch.rand(2, 1, 3, 3)
    with pytest.warns(UserWarning, match="n = 9 draws cannot show a majority at alpha = 0.001"):
        found = cdn.certify(Constant(), x, SIGMA, 5, 9, 0.001)
    assert (found.label == ABSTAIN).all() and fewest_for_majority(9, 0.001) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (cdn.certify(Constant(), x, SIGMA, 5, 10, 0.001).radius > 0).all()


def test_modes_and_precision():
    model, x = Linear().train(), torch.rand(2, 1, 4, 4)
    cdn.certify(model, x, SIGMA, 5, 20, 0.1, precision="bf16")
    assert set(model.seen) == {(5, False, False, True), (20, False, False, True)}
    assert model.training and model.weight.requires_grad and torch.is_grad_enabled()
    with torch.inference_mode():
        assert len(cdn.certify(model, x, SIGMA, 5, 20, 0.1).label) == 2
    assert [len(field) for field in cdn.certify(model, x[:0], SIGMA, 5, 20, 0.1)] == [0] * 4


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(sigma=0), "sigma must be a number above 0, got 0"),
        (dict(sigma=math.nan), "sigma must be"),
        (dict(n=0), "n: expected at least 1, got 0"),
        (dict(n0=0), "n0: expected at least 1, got 0"),
        (dict(alpha=1), r"alpha must be in \(0, 1\), got 1"),
        (dict(batch_size=0), "batch_size: expected at least 1"),
        (dict(x=torch.rand(4, 4)), r"x must be images \[B, C, H, W\], got \[4, 4\]"),
        (dict(model=cdn.DirectDenoiser(1, width=8)), "expected one that classifies, got a DirectDenoiser"),
    ],
)
def test_bad_input_gets_a_sentence(options, sentence):
    arguments = dict(model=Constant(), x=torch.rand(1, 1, 4, 4), sigma=SIGMA, n0=2, n=20) | options
    with pytest.raises(ValueError, match=sentence):
        cdn.certify(**arguments)


def test_an_unknown_precision_gets_a_sentence():
    with pytest.raises(CDNError, match="precision: expected one of float32, bf16, got 'int8'"):
        cdn.certify(Constant(), torch.rand(1, 1, 4, 4), SIGMA, precision="int8")
