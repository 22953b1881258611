"""The sets that attacks search."""

import math

import pytest
import torch

from cdn.methods.attacks.ball import NORMS, Ball, diameter, distance
from cdn_kernels import Noise

RADIUS = 0.2
ROUNDING = 2e-7


def images(count=16):
    """Images of which many values lie on the border of [0, 1]."""
    return (1.6 * torch.rand(count, 3, 5, 4) - 0.3).clamp(0, 1)


@pytest.mark.parametrize("norm", NORMS)
def test_projections_lie_in_the_ball_and_in_the_box(norm):
    x, ball = images(), Ball(norm, RADIUS)
    y = ball.project(x, x + torch.randn_like(x))
    assert distance(norm, x, y).max() <= RADIUS * (1 + 1e-6) + ROUNDING
    assert y.min() >= 0 and y.max() <= 1
    assert distance(norm, x, y).max() > 0.5 * RADIUS
    torch.testing.assert_close(ball.project(x, y), y)


@pytest.mark.parametrize("norm", NORMS)
def test_what_lies_inside_stays_where_it_is(norm):
    x = images()
    y = (x + 0.9 * RADIUS / math.sqrt(60) * torch.randn_like(x).sign()).clamp(0, 1)
    torch.testing.assert_close(Ball(norm, RADIUS).project(x, y), y)


def test_projection_to_a_cube_is_the_nearest_point():
    x, y = images(), 2 * torch.randn(16, 3, 5, 4)
    nearest = y.clamp((x - RADIUS).clamp(min=0), (x + RADIUS).clamp(max=1))
    torch.testing.assert_close(Ball("linf", RADIUS).project(x, y), nearest)


@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_the_steepest_change_attains_the_dual_norm(norm, dual, scale):
    gradient = scale * torch.randn(8, 3, 5, 4)
    change = Ball(norm, RADIUS).steepest(gradient)
    torch.testing.assert_close(distance(norm, 0 * change, change), torch.ones(8))
    rise = (change.double() * gradient.double()).sum((1, 2, 3))
    steepest = torch.linalg.vector_norm(gradient.double().flatten(1), dual, dim=1)
    torch.testing.assert_close(rise, steepest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_no_change(norm):
    assert not Ball(norm, RADIUS).steepest(torch.zeros(2, 1, 3, 3)).any()


@pytest.mark.parametrize("norm", NORMS)
def test_draws_fill_the_ball(norm):
    x, ball = torch.full((2000, 1, 2, 2), 0.5), Ball(norm, RADIUS)
    y = ball.draw(x, Noise(0))
    share = distance(norm, x, y) / RADIUS
    assert share.max() <= 1 + 1e-6
    # The volume within a share s of the radius is s^4 in four dimensions: the mean share is 4/5, its deviation 0.16.
    assert abs(float(share.mean()) - 0.8) < 4 * 0.16 / math.sqrt(2000)
    assert abs(float(y.mean()) - 0.5) < 0.01
    torch.testing.assert_close(ball.draw(x, Noise(0)), y)


@pytest.mark.parametrize("norm", NORMS)
def test_sizes(norm):
    x = torch.zeros(1, 3, 5, 4)
    constant = torch.full_like(x, Ball(norm, RADIUS).amplitude(x))
    torch.testing.assert_close(distance(norm, x, constant), torch.tensor([RADIUS]))
    torch.testing.assert_close(distance(norm, x, torch.ones_like(x)), torch.tensor([diameter(norm, x.shape[1:])]))


def test_refusals():
    with pytest.raises(ValueError, match="norm: expected one of linf, l2, got 'l1'"):
        Ball("l1", 0.1)
    for radius in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="radius: expected a finite number of at least 0, got"):
            Ball("l2", radius)
