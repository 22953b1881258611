"""Detectors of outliers and the figures that judge them, against counting and closed forms."""

import pytest
import torch
from torch import nn

import cdn
from cdn.methods.detection.detectors import Evidence, gather, rate, separation


def counted(inliers, outliers):
    """AUROC and FPR95 by comparing every pair, and every threshold."""
    above = (inliers[:, None] > outliers).double() + 0.5 * (inliers[:, None] == outliers)
    passing = [t for t in inliers.tolist() if (inliers >= t).double().mean() >= 0.95]
    return float(above.mean()), float((outliers >= max(passing)).double().mean())


def average_precision(scores, positive):
    """The mean, over positives, of the share of positives among all that score at least as high."""
    return float(torch.stack([positive[scores >= s].double().mean() for s in scores[positive]]).mean())


@pytest.mark.parametrize("count", [19, 20, 21, 40])
def test_figures_are_what_counting_gives(count):
    generator = torch.Generator().manual_seed(count)
    inliers = torch.randn(count, generator=generator).mul(4).round().double() + 2  # rounded: there are ties
    outliers = torch.randn(30, generator=generator).mul(4).round().double()
    found = separation(inliers, outliers)
    auroc, fpr95 = counted(inliers, outliers)
    scores = torch.cat([inliers, outliers])
    inside = torch.arange(len(scores)) < count
    assert found.auroc == pytest.approx(auroc) and found.fpr95 == pytest.approx(fpr95)
    assert found.aupr_in == pytest.approx(average_precision(scores, inside))
    assert found.aupr_out == pytest.approx(average_precision(-scores, ~inside))


def test_separable_sets_and_identical_ones():
    low, high = torch.arange(40).double(), torch.arange(40).double() + 100
    assert separation(high, low) == (1, 1, 1, 0)
    assert separation(low, high).auroc == 0 and separation(low, high).fpr95 == 1
    same = separation(low, low)
    assert same.auroc == pytest.approx(0.5) and same.fpr95 == pytest.approx(0.95)
    alike = torch.zeros(40)
    assert separation(alike, alike) == (0.5, 0.5, 0.5, 1)


@pytest.mark.parametrize(
    "inliers, outliers, message",
    [
        (torch.zeros(0), torch.zeros(3), r"inliers: expected finite ratings \[N\], N > 0, got \[0\]"),
        (torch.zeros(3), torch.tensor([1.0, float("nan")]), "outliers: expected finite ratings .* with 1 not finite"),
    ],
)
def test_ratings_that_cannot_be_ranked(inliers, outliers, message):
    with pytest.raises(ValueError, match=message):
        separation(inliers, outliers)


class Mixture(nn.Module):
    """log p(y, c) of two Gaussian classes of unit variance, at +m and -m."""

    def __init__(self):
        super().__init__()
        self.config = dict(num_classes=2)
        self.means = torch.tensor([2.0, -2.0]).view(2, 1, 1, 1, 1) * torch.ones(2, 1, 1, 3, 3)

    def forward(self, y):
        return -0.5 * (y - self.means).square().flatten(2).sum(2).T


def test_evidence_of_a_known_density():
    torch.manual_seed(0)
    y = torch.randn(7, 1, 3, 3)
    evidence = gather(Mixture(), y, batch_size=3)
    along = 2 * y.flatten(1).sum(1).double()  # <m, y>
    # The logits differ by 2 <m, y>, so that p(+|y) = sigmoid(2 <m, y>) and the score is tanh(<m, y>) m - y.
    torch.testing.assert_close(evidence.confidence, torch.sigmoid(2 * along.abs()), atol=1e-6, rtol=1e-5)
    score = torch.tanh(along)[:, None] * 2 - y.flatten(1)
    torch.testing.assert_close(evidence.score_norm, score.norm(dim=1), atol=1e-5, rtol=1e-5)
    log_density = -0.5 * (y.flatten(1).double().square().sum(1) + 36) + (2 * torch.cosh(along)).log()
    torch.testing.assert_close(evidence.log_density, log_density, atol=1e-4, rtol=1e-5)


def test_ratings():
    evidence = lambda *values: torch.tensor(values, dtype=torch.float64)
    reference = Evidence(evidence(-1, 0, 1), evidence(1, 1, 1), evidence(1, 1, 1))
    ratings = rate(Evidence(evidence(0, 5, -5), evidence(3, 1, 2), evidence(0.5, 0.9, 0.7)), reference)
    assert ratings["log density"].tolist() == [0, 5, -5]
    assert ratings["typicality"].tolist() == [0, -5, -5]  # a high density is as untypical as a low one
    assert ratings["score norm"].tolist() == [-3, -1, -2] and ratings["max softmax"].tolist() == [0.5, 0.9, 0.7]


def test_a_plain_classifier_has_its_confidence_alone():
    torch.manual_seed(0)
    model, y = cdn.ResNet(4, 1, width=8).eval(), torch.rand(3, 1, 8, 8)
    evidence = gather(model, y, density=False)
    assert evidence.log_density is None and evidence.score_norm is None
    assert list(rate(evidence, evidence)) == ["max softmax"]
    torch.testing.assert_close(evidence.confidence, model(y).softmax(1).amax(1).double())
    with pytest.raises(ValueError, match="models no density"):
        gather(model, y)
    unsure = gather(cdn.gradresnet_small(4, 1, width=8), y, classes=False)
    assert list(rate(unsure, unsure)) == ["log density", "typicality", "score norm"]
