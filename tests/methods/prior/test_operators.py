"""Measurement operators against their dense matrices, and each against what it is to measure."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cdn.methods.prior.operators import CompressiveSensing, Deblurring, Inpainting, MissingPixels, SuperResolution

SHAPE = (2, 6, 4)
OPERATORS = {
    "inpainting": Inpainting(SHAPE, 2),
    "missing-pixels": MissingPixels(SHAPE, 0.4, seed=1),
    "super-resolution": SuperResolution(SHAPE, 2),
    "deblurring": Deblurring(SHAPE, 1.2, cutoff=0.1),
    "compressive-sensing": CompressiveSensing(SHAPE, 0.3, seed=2),
}


@pytest.fixture(params=OPERATORS, ids=str)
def operator(request):
    return OPERATORS[request.param]


def images(batch=3, shape=SHAPE):
    return torch.rand(batch, *shape, dtype=torch.float64)


def dense(operator):
    """The matrix [measurements, values] of an operator."""
    values = torch.eye(torch.Size(operator.shape).numel(), dtype=torch.float64).unflatten(1, operator.shape)
    return operator.forward(values).flatten(1).T


def test_it_is_its_matrix(operator):
    """Adjoint, pseudo-inverse, projection and rank are those of linear algebra."""
    matrix, x = dense(operator), images()
    m = operator.forward(x)
    torch.testing.assert_close(m.flatten(1), x.flatten(1) @ matrix.T)
    other = torch.rand_like(m)
    torch.testing.assert_close(operator.adjoint(other).flatten(1), other.flatten(1) @ matrix)
    inverse = torch.linalg.pinv(matrix, rtol=1e-8)
    torch.testing.assert_close(operator.pinv(other).flatten(1), other.flatten(1) @ inverse.T)
    torch.testing.assert_close(operator.project(x).flatten(1), x.flatten(1) @ (inverse @ matrix).T)
    assert operator.size == torch.linalg.matrix_rank(matrix, rtol=1e-8)
    assert operator.size < matrix.shape[1]


def test_adjoint_and_pseudo_inverse_identities(operator):
    x = images()
    m = operator.forward(x)
    other = torch.rand_like(m)
    torch.testing.assert_close((m * other).flatten(1).sum(1), (x * operator.adjoint(other)).flatten(1).sum(1))
    torch.testing.assert_close(operator.forward(operator.pinv(m)), m)
    torch.testing.assert_close(operator.project(operator.project(x)), operator.project(x))


@pytest.mark.parametrize("name", ["inpainting", "missing-pixels", "compressive-sensing"])
def test_orthonormal_rows(name):
    matrix = dense(OPERATORS[name])
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64))


def test_grey_is_the_closest_image_to_mid_grey(operator):
    m = operator.forward(images())
    grey = operator.grey(m)
    torch.testing.assert_close(operator.forward(grey), m)
    away = grey - 0.5
    torch.testing.assert_close(operator.project(away), away)  # what is left lies in the rows: no shorter way


def test_inpainting_loses_the_middle():
    x = images(1, (1, 7, 9))
    known = Inpainting((1, 7, 9), 3).project(x)
    assert torch.equal(known[:, :, 2:5, 3:6], torch.zeros(1, 1, 3, 3, dtype=torch.float64))
    known[:, :, 2:5, 3:6] = x[:, :, 2:5, 3:6]
    assert torch.equal(known, x)


def test_missing_pixels_keep_their_share_in_all_channels():
    kept = MissingPixels((3, 20, 10), 0.25, seed=4).project(torch.ones(1, 3, 20, 10))
    assert kept[0, 0].sum() == 50 and torch.equal(kept[0, 0], kept[0, 2])
    assert not torch.equal(kept, MissingPixels((3, 20, 10), 0.25, seed=5).project(torch.ones(1, 3, 20, 10)))


def test_super_resolution_averages():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    operator = SuperResolution((1, 4, 4), 2)
    assert operator.forward(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert operator.project(x)[0, 0, 0].tolist() == [2.5, 2.5, 4.5, 4.5]


def test_deblurring_blurs_by_a_gaussian():
    """With next to no cut-off it is the usual filter with mirrored borders, up to how that samples its kernel."""
    x = images(2, (3, 24, 20))
    blurred = Deblurring((3, 24, 20), 1.5, cutoff=1e-12).forward(x)
    expected = np.stack([[gaussian_filter(c, 1.5, mode="reflect", truncate=8) for c in image] for image in x.numpy()])
    torch.testing.assert_close(blurred, torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_random_vectors_meet_an_image_as_noise_would():
    """Every vector takes about its share 1/d of the energy of a smooth image, too: none is blind to it, or sees it."""
    smooth = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    m = CompressiveSensing((3, 32, 32), 1.0).forward(smooth)[0]
    share = m.square() / m.square().mean()
    # Squares of normals: mean 1, and the largest of 3,072 near 2 ln 3072 = 16.
    assert float(share.max()) < 25 and float(share.median()) == pytest.approx(0.455, abs=0.08)


def test_measurements_keep_their_precision_under_autocast(operator):
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        m = operator.forward(x)
    assert m.dtype == torch.float32
    torch.testing.assert_close(m, operator.forward(x))


def test_what_inference_mode_computed_serves_elsewhere():
    operator = Deblurring((1, 5, 3), 0.7)
    with torch.inference_mode():
        operator.forward(torch.rand(1, 1, 5, 3))
    x = torch.rand(1, 1, 5, 3, requires_grad=True)
    operator.forward(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Inpainting((1, 8, 6), 6), r"block must be in \[1, 5\] pixels for images of 8 x 6, got 6"),
        (lambda: Inpainting((1, 8, 6), 0), "block must be in"),
        (lambda: MissingPixels((1, 8, 8), 1.5), r"ratio must be in \(0, 1\] .* got 1.5"),
        (lambda: MissingPixels((1, 8, 8), 0.001), "keep at least one of 64 values, got 0.001"),
        (lambda: CompressiveSensing((1, 8, 8), 0.0), r"ratio must be in \(0, 1\]"),
        (
            lambda: SuperResolution((1, 8, 8), 3),
            "factor must be at least 1 and divide the sides of images of 8 x 8, got 3",
        ),
        (lambda: SuperResolution((1, 8, 8), 16), "factor must be"),
        (lambda: SuperResolution((1, 8, 8), 0), "factor must be"),
        (lambda: Deblurring((1, 8, 8), 0.0), "blur must be a deviation above 0 pixels, got 0.0"),
        (lambda: Deblurring((1, 8, 8), 1.0, cutoff=2.0), r"cutoff must be in \(0, 1\], got 2.0"),
        (lambda: Inpainting((1, 8, 8), 2).forward(torch.rand(1, 3, 8, 8)), r"\[B, 1, 8, 8\] .* got \[1, 3, 8, 8\]"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
