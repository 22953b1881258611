"""Similarities of images: what they are by definition, and what they have in common."""

import math

import pytest
import torch

import cdn
from cdn.methods.distances.dissimilarity import Structural, features, in_nats, information, nearest_class, pixels
from cdn.methods.synthesis import infer, pixel_distance
from tests.methods.synthesis.linear_generators import random_generators

NAMES = ("pixels", "SSIM", "features of a CDN", "features of a ResNet", "information")


def model():
    torch.manual_seed(1)
    return cdn.gradresnet_small(3, 2, width=8).double()


def resnet():
    torch.manual_seed(2)
    return cdn.ResNet(3, 2, width=8, blocks=(1, 1)).double().eval()


def build(name):
    return dict(
        zip(
            NAMES,
            (
                pixels,
                Structural,
                lambda: features(model()),
                lambda: features(resnet()),
                lambda: information(model(), nodes=2),
            ),
        )
    )[name]()


def images(count=4):
    return torch.rand(count, 2, 6, 7, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_equal_images_are_alike_and_order_does_not_matter(name):
    similarity, a, b = build(name), images(), images()
    between = similarity(a, b)
    assert between.shape == (4,) and (between > 1e-3).all()
    assert (similarity(a, a).abs() < 1e-12).all()
    torch.testing.assert_close(similarity(b, a), between)


@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_compares_each_with_each(name):
    similarity, a, b = build(name), images(3), images(2)
    matrix = similarity.matrix(a, b)
    for j in range(2):
        torch.testing.assert_close(matrix[:, j].double(), similarity(a, b[j].expand_as(a)))


@pytest.mark.parametrize("name", NAMES)
def test_many_reconstructions_are_compared_at_once(name):
    similarity, x, r = build(name), images(2), images(12).view(2, 3, 2, 2, 6, 7)
    found = similarity(x, r)
    assert found.shape == (2, 3, 2)
    torch.testing.assert_close(found[:, 2, 1], similarity(x, r[:, 2, 1]))


@pytest.mark.parametrize("name", NAMES)
def test_they_have_gradients(name):
    similarity, a, b = build(name), images(1)[:, :, :2, :3].clone().requires_grad_(), images(1)[:, :, :2, :3]
    assert torch.autograd.gradcheck(lambda a: similarity(a, b), a)


def test_pixels_and_structure_are_their_formulas():
    a, b = images(), images()
    torch.testing.assert_close(pixels()(a, b), ((a - b) ** 2).sum((1, 2, 3)))
    constant = torch.full((1, 1, 12, 12), 0.3)
    torch.testing.assert_close(
        Structural()(constant, 2 * constant), 1 - torch.tensor([(2 * 0.18 + 1e-4) / (0.45 + 1e-4)]).double()
    )


def test_features_are_compared_by_direction():
    """A trunk that hands its input on: the distance is then 2 - 2 cos of the angle between channels at each pixel."""
    plain = resnet()
    plain.trunk = torch.nn.Sequential(torch.nn.Identity())
    plain.mean.zero_()
    angle = torch.tensor([0.0, 0.5, 1.0, math.pi / 2], dtype=torch.float64)
    along = torch.stack([angle.cos(), angle.sin()], 1)[:, :, None, None].expand(4, 2, 3, 3)
    across = torch.tensor([1.0, 0.0], dtype=torch.float64)[:, None, None].expand(4, 2, 3, 3)
    torch.testing.assert_close(features(plain)(3 * along, across), 2 - 2 * angle.cos())


def test_every_stage_counts_once():
    a = images(2)
    embedded = features(resnet()).embed(a)
    assert embedded.shape == (2, 8 * 42 + 16 * 12)  # 8 channels of 6 x 7 pixels, 16 of 3 x 4
    torch.testing.assert_close(embedded.square().sum(1), torch.full((2,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(features(model()).embed(a).square().sum(1), torch.full((2,), 2.0, dtype=torch.float64))


def test_information_is_the_distance_of_single_images():
    network, a, b = model(), images(3), images(3)
    levels, key = cdn.NoiseLevels(low=0.1, high=0.7), cdn.Noise(4, 20)
    found = information(network, levels, nodes=3, draws=2, noise=key)(a, b)
    one_by_one = [
        cdn.similarity(network, a[i : i + 1], b[i : i + 1], levels=levels, nodes=3, draws=2, noise=key)
        for i in range(3)
    ]
    torch.testing.assert_close(found, torch.cat(one_by_one).square())


def test_the_nearest_example_of_each_class():
    examples = torch.tensor([0.0, 0.5, 1.0, 0.9]).view(4, 1, 1, 1)
    x = torch.tensor([0.1, 0.8]).view(2, 1, 1, 1)
    found = nearest_class(pixels(), x, examples, torch.tensor([0, 0, 1, 2]), 3)
    expected = torch.tensor([[0.1, 0.9, 0.8], [0.3, 0.2, 0.1]]).double().square()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="found none of class 2"):
        nearest_class(pixels(), x, examples, torch.tensor([0, 0, 1, 1]), 3)


def test_pixels_in_nats_are_the_likelihood():
    generators = random_generators()
    x, trained = torch.rand(2, 5, 2, 2, 3, dtype=torch.float64)
    distance = in_nats(pixels(), trained, trained.flip(0), generators.sigma)
    found = infer(generators, x, distance, steps=15, draws=8)
    for value, expected in zip(found, infer(generators, x, pixel_distance(generators.sigma), steps=15, draws=8)):
        torch.testing.assert_close(value, expected)


def test_a_search_by_structure_finds_more_of_it():
    generators, x = random_generators(), torch.rand(6, 2, 2, 3, dtype=torch.float64)
    distance = in_nats(Structural(), x, generators.decode(generators.optimum(x)[0])[:, 0], generators.sigma)
    by_pixels = distance(x, generators.decode(generators.optimum(x)[0]))
    assert infer(generators, x, distance, steps=60, rate=0.2).distances.sum() < by_pixels.sum()
