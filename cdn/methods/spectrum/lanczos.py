"""Extreme eigenpairs of a symmetric operator that is known only by its products with vectors."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# A direction that loses this share of its length to orthogonalization is rounding noise.
LOST = 1e-8


class Eigenpairs(NamedTuple):
    """Some eigenpairs of a symmetric operator, the largest eigenvalue first.

    Attributes:
        values: float64 [k].
        vectors: float64 [k, n], orthonormal rows; the sign of each is arbitrary.
        residuals: float64 [k], ``|A v - lambda v|``: an eigenvalue of the operator lies that close to lambda.
        products: how many vectors the operator was applied to.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int


def extreme_eigenpairs(
    product: Callable[[Tensor], Tensor],
    size: int,
    largest: int,
    smallest: int,
    *,
    generator: torch.Generator,
    block: int = 8,
    tolerance: float = 1e-3,
    limit: int = 512,
) -> Eigenpairs:
    """Find the ends of a spectrum by block Lanczos iteration with full reorthogonalization.

    The Krylov space of a block of random vectors grows by one block of products per step; the best approximations
    in it are those of Rayleigh and Ritz (Golub & Underwood, "The block Lanczos method for computing eigenvalues",
    1977). Every new direction is made orthogonal to all before, so no eigenvalue comes out twice by rounding.
    ``torch.lobpcg`` does the same job for matrices, but takes no products.

    Args:
        product: the operator A, from rows [k, n], k <= block, float64, to their images [k, n] in any precision.
        size: n.
        largest, smallest: how many pairs at either end.
        generator: a ``torch.Generator`` on the CPU, for the first block.
        block: products per step. An eigenvalue is found with its multiplicity up to this; the further
            copies of one may be missed, unless the space becomes the whole.
        tolerance: largest residual wanted, relative to the largest eigenvalue in absolute value.
        limit: dimension at which to stop, converged or not: look at the residuals.

    Returns:
        :class:`Eigenpairs`, ``largest + smallest`` of them, or all n if these are fewer. Computed on the CPU.

    Raises:
        ValueError: a number out of range, or products that are not finite.

    Limitations: the operator must be symmetric, which is not checked. Two float64 matrices [limit, n] are
    kept.
    """
    wanted = _wanted(size, largest, smallest, block, limit)
    limit = min(limit, size)
    basis, images = torch.empty(2, limit, size, dtype=torch.float64)
    reduced = torch.empty(limit, limit, dtype=torch.float64)
    seeds = torch.randn(min(block, limit), size, dtype=torch.float64, generator=generator)
    done = 0
    while True:
        start, done = done, min(done + len(seeds), limit)
        for row, seed in zip(range(start, done), seeds):
            basis[row] = _orthonormal(seed, basis[:row], generator)
        images[start:done] = product(basis[start:done])
        if not images[start:done].isfinite().all():
            raise ValueError("product must return finite values, got inf or nan")
        reduced[start:done, :done] = images[start:done] @ basis[:done].T
        reduced[:start, start:done] = reduced[start:done, :start].T
        if done >= min(wanted, limit):
            pairs = _ritz(basis[:done], images[:done], reduced[:done, :done], largest, smallest)
            scale = float(pairs.values.abs().max())
            if done == limit or float(pairs.residuals.max()) <= tolerance * scale:
                return pairs
        seeds = images[start:done]


def _wanted(size: int, largest: int, smallest: int, block: int, limit: int) -> int:
    """Return how many eigenpairs are wanted, or raise ValueError where the numbers allow none."""
    wanted = largest + smallest
    if min(largest, smallest) < 0 or not wanted:
        raise ValueError(f"largest and smallest must be at least 0 and not both 0, got {largest} and {smallest}")
    if block < 1 or limit < min(wanted, size):
        raise ValueError(f"block must be at least 1 and limit at least {min(wanted, size)}, got {block} and {limit}")
    return wanted


def _orthonormal(row: Tensor, basis: Tensor, generator: torch.Generator) -> Tensor:
    """Return a unit vector orthogonal to an orthonormal basis: along row, or at random where row lies in its span."""
    while True:
        length = row.norm()
        for _ in range(2):  # once leaves the rounding of what it took away
            row = row - (basis @ row) @ basis
        if row.norm() > LOST * length:
            return row / row.norm()
        row = torch.randn(row.shape, dtype=row.dtype, generator=generator)


def _ritz(basis: Tensor, images: Tensor, reduced: Tensor, largest: int, smallest: int) -> Eigenpairs:
    values, coordinates = torch.linalg.eigh((reduced + reduced.T) / 2)
    values, coordinates = values.flip(0), coordinates.flip(1).T
    if largest + smallest < len(values):
        ends = torch.cat([torch.arange(largest), torch.arange(len(values) - smallest, len(values))])
        values, coordinates = values[ends], coordinates[ends]
    vectors = coordinates @ basis
    residuals = (coordinates @ images - values[:, None] * vectors).norm(dim=1)
    return Eigenpairs(values, vectors, residuals, len(basis))
