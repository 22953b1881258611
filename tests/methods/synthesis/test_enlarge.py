"""Images made larger are those of bilinear interpolation, and come back as they were."""

import pytest
import torch
import torch.nn.functional as F

from cdn.methods.synthesis.enlarge import Enlargement


def test_bilinear_and_back():
    size, x = Enlargement((2, 8, 6), 28), torch.rand(3, 2, 8, 6)
    large = size.enlarge(x)
    torch.testing.assert_close(large, F.interpolate(x, size=(28, 28), mode="bilinear"))
    assert size.shape == (2, 28, 28) and large.min() >= 0 and large.max() <= 1
    torch.testing.assert_close(size.shrink(large), x, atol=1e-5, rtol=0)


def test_the_way_back_is_that_of_least_squares():
    size, y = Enlargement((1, 5, 5), 9), torch.rand(1, 1, 9, 9)
    error = lambda x: (size.enlarge(x) - y).square().sum()
    best = size.shrink(y)
    assert all(error(best) <= error(best + 0.01 * torch.randn_like(best)) for _ in range(20))


def test_an_image_of_its_own_size_stays():
    size, x = Enlargement((3, 8, 8), 8), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(size.enlarge(x), x)
    torch.testing.assert_close(size.shrink(x), x)


def test_smaller_is_refused():
    with pytest.raises(ValueError, match="side: expected at least 8, the side of the images, got 7"):
        Enlargement((1, 6, 8), 7)
