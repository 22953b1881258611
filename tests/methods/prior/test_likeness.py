"""Distances between sets of images, against closed forms and other implementations."""

import pytest
import torch
from scipy import linalg

import cdn
from cdn.data.dataset import MemorySplit
from cdn.methods.prior.likeness import frechet_distance, nearest_images, pooled_features


def gaussian(count, features, seed):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=generator).double()
    return torch.randn(count, features, generator=generator).double() @ mix + torch.rand(features, generator=generator)


def whitened(features):
    """Features with exactly zero mean and unit covariance."""
    centred = features - features.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(centred.T.cov()), centred.T, upper=False).T


def test_identical_sets_are_at_distance_zero():
    a = gaussian(50, 8, 0)
    assert frechet_distance(a, a) < 1e-9
    few = gaussian(5, 8, 0)  # fewer samples than features: the covariance is singular
    assert frechet_distance(few, few) < 1e-6


def test_commuting_covariances():
    """|m|^2 + sum (sqrt a - sqrt b)^2 for diagonal covariances a and b."""
    unit = whitened(gaussian(40, 5, 1))
    a = torch.tensor([0.1, 1.0, 2.0, 4.0, 0.0], dtype=torch.float64)
    b = torch.tensor([0.4, 1.0, 0.5, 9.0, 1.0], dtype=torch.float64)
    shift = torch.arange(5).double()
    expected = float(shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(unit * a.sqrt(), unit * b.sqrt() + shift) == pytest.approx(expected, rel=1e-9)


def test_against_the_square_root_of_scipy():
    a, b = gaussian(60, 7, 2), gaussian(80, 7, 3)
    root = linalg.sqrtm((a.T.cov() @ b.T.cov()).numpy()).real
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize(
    "a, b, message",
    [
        ((5, 3), (5, 4), "expected as many features in both, got 3 and 4"),
        ((1, 3), (5, 3), r"a: expected features \[N, F\] of at least 2 samples, got \[1, 3\]"),
    ],
)
def test_sets_that_cannot_be_compared(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize("build", [cdn.gradresnet_small, cdn.ResNet])
def test_features_are_those_of_the_last_stage(build):
    torch.manual_seed(1)
    model = build(10, 1, width=8).eval()
    images = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        features = model.trunk(images - model.mean)
    last = features if torch.is_tensor(features) else features[-1]
    torch.testing.assert_close(
        pooled_features(model, images, batch_size=2), last.mean((2, 3)).double(), rtol=1e-5, atol=1e-6
    )
    assert not model.trunk._forward_hooks


def test_nearest_images_are_found():
    images = torch.randint(256, (30, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = MemorySplit(images, torch.zeros(30, dtype=torch.int64))
    queries = images[[7, 21, 3]].float().div(255)
    queries[1] = queries[1].flip(2)
    queries[0] += 0.01
    nearest, distance = nearest_images(queries, split, mirrored=True, chunk=8)
    # The second is mirrored, and its mirror image is found; without mirrors it is far from all.
    torch.testing.assert_close(distance, torch.tensor([0.01, 0.0, 0.0]), atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(nearest, torch.cat([images[[7]], images[[21]].flip(3), images[[3]]]).float() / 255)
    plain, far = nearest_images(queries, split)
    brute = (queries[1] - images.float() / 255).square().mean((1, 2, 3)).sqrt().min()
    torch.testing.assert_close(far[1], brute, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain[[0, 2]], nearest[[0, 2]])
