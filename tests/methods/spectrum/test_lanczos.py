"""Block Lanczos against LAPACK."""

import numpy as np
import pytest
import torch

from cdn.methods.spectrum.lanczos import extreme_eigenpairs


def symmetric(values, seed=0):
    """A symmetric matrix with given eigenvalues and random eigenvectors."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    return torch.from_numpy(basis * np.asarray(values) @ basis.T)


def find(matrix, largest, smallest, **options):
    return extreme_eigenpairs(
        lambda rows: rows @ matrix,
        len(matrix),
        largest,
        smallest,
        generator=torch.Generator().manual_seed(0),
        **options,
    )


def check(pairs, matrix, expected, tolerance):
    """Eigenvalues as expected, orthonormal vectors, and residuals that are those of the matrix."""
    np.testing.assert_allclose(pairs.values.numpy(), expected, atol=tolerance)
    np.testing.assert_allclose((pairs.vectors @ pairs.vectors.T).numpy(), np.eye(len(expected)), atol=1e-10)
    residuals = (pairs.vectors @ matrix - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    np.testing.assert_allclose(pairs.residuals.numpy(), residuals.numpy(), atol=1e-12)


@pytest.mark.parametrize("block", [4, 7])
def test_degenerate_eigenvalues_come_with_their_multiplicity(block):
    """Eigenvalues of multiplicity 3 at both ends, and a whole cluster at 0."""
    values = np.concatenate([np.repeat([2.0, 1.5, -0.7, -0.3], 3), np.zeros(60), np.linspace(0.1, 1, 128)])
    matrix = symmetric(values)
    exact = np.linalg.eigh(matrix.numpy())[0][::-1]
    pairs = find(matrix, 5, 4, block=block, tolerance=1e-8)
    check(pairs, matrix, np.concatenate([exact[:5], exact[-4:]]), 1e-10)
    assert pairs.residuals.max() <= 2e-8 and pairs.products < 200


@pytest.mark.parametrize("values", [np.ones(13), np.repeat([3.0, -1.0], [2, 9]), np.arange(17.0)])
def test_the_whole_spectrum_also_where_the_krylov_space_ends_early(values):
    """A multiple of the identity maps every block into itself: random directions have to take over."""
    matrix = symmetric(values)
    pairs = find(matrix, len(values), 0, block=3, tolerance=0)
    check(pairs, matrix, np.linalg.eigh(matrix.numpy())[0][::-1], 1e-12)


def test_more_pairs_than_there_are():
    matrix = symmetric(np.arange(5.0))
    check(find(matrix, 4, 4), matrix, np.arange(5.0)[::-1], 1e-12)


def test_float32_products_leave_float32_residuals():
    matrix = symmetric(np.linspace(0, 1, 80) ** 3)
    generator = torch.Generator().manual_seed(0)
    product = lambda rows: rows.float() @ matrix.float()
    pairs = extreme_eigenpairs(product, 80, 3, 0, generator=generator, tolerance=1e-5)
    np.testing.assert_allclose(pairs.values.numpy(), np.linalg.eigvalsh(matrix.numpy())[:-4:-1], atol=1e-6)
    assert pairs.residuals.max() <= 1e-5


def test_a_limit_stops_it_and_the_residuals_say_so():
    matrix = symmetric(np.linspace(0, 1, 200))
    pairs = find(matrix, 3, 3, block=4, tolerance=1e-12, limit=20)
    assert pairs.products == 20 and pairs.residuals.max() > 1e-3
    # Whatever the residual is, an eigenvalue lies that close.
    distance = (pairs.values[:, None] - torch.linspace(0, 1, 200, dtype=torch.float64)).abs().min(1).values
    assert (distance <= pairs.residuals + 1e-12).all()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(largest=-1, smallest=2), "largest and smallest must be at least 0"),
        (dict(largest=0, smallest=0), "not both 0"),
        (dict(largest=2, smallest=3, limit=4), "limit at least 5"),
        (dict(largest=1, smallest=1, block=0), "block must be at least 1"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        find(torch.eye(10, dtype=torch.float64), **options)


def test_products_that_are_not_finite():
    with pytest.raises(ValueError, match="product must return finite values"):
        find(torch.full((4, 4), float("nan"), dtype=torch.float64), 1, 1)
