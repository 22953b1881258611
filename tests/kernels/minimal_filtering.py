"""The error that convolutions by minimal filtering may have: their transforms, applied to absolute values."""

import torch
import torch.nn.functional as F

from cdn_kernels.backends.interface import CONV_INPUT, CONV_WEIGHT
from tests.kernels.convolutions import exact

A, B = 0.5**0.5, 2**0.5  # the points, besides 0 and infinity
TILE, PATCH = 4, 6
# The roundings that a value passes: three in one dimension, for two dimensions and three transforms, and in storage.
ROUNDINGS = 19


def transforms():
    """Return the matrices of one dimension: of data [6, 6], of filters [6, 3] and of results [6, 4], in float64."""
    points = torch.tensor([0, A, -A, B, -B], dtype=torch.float64)
    others = [torch.cat([points[:i], points[i + 1 :]]) for i in range(5)]
    # What the data are multiplied with are the coefficients of prod (x - p) over the other points, or over all.
    data = torch.stack([_polynomial(roots, PATCH) for roots in [*others, points]])
    filters = torch.stack([points[i] ** torch.arange(3) / (points[i] - others[i]).prod() for i in range(5)])
    results = torch.stack([points[i] ** torch.arange(4) for i in range(5)])
    last = lambda size: torch.eye(size, dtype=torch.float64)[-1:]
    return data, torch.cat([filters, last(3)]), torch.cat([results, last(4)])


def _polynomial(roots, size):
    """Return the coefficients of prod (x - root), the constant first, followed by zeros."""
    coefficients = torch.ones(1, dtype=torch.float64)
    for root in roots:
        coefficients = F.pad(coefficients, (1, 0)) - root * F.pad(coefficients, (0, 1))
    return F.pad(coefficients, (0, size - len(coefficients)))


def patches(x, size, before):
    """Return the patches [B, C, tiles down, tiles across, size, size] that the tiles of images are made of."""
    height, width = (-(-side // TILE) * TILE for side in x.shape[2:])
    after = size - TILE - before
    x = F.pad(x, (before, width - x.shape[3] + after, before, height - x.shape[2] + after))
    return x.unfold(2, size, TILE).unfold(3, size, TILE)


def both_sides(matrix, x):
    """Return matrix x matrix'."""
    return matrix @ x @ matrix.T


def filtered(kind, operands, matrices):
    """Return a map of a 3x3 convolution by minimal filtering with some matrices of one dimension."""
    data, filters, results = matrices
    first, second, like = (t.double() for t in operands[kind])
    if kind == CONV_WEIGHT:
        x, g = (both_sides(m, patches(t, s, b)) for m, t, s, b in ((data, first, 6, 1), (results, second, 4, 0)))
        return both_sides(filters.T, torch.einsum("bidexy,bodexy->oixy", x, g))
    if kind == CONV_INPUT:
        second = second.flip(2, 3).transpose(0, 1)
    products = torch.einsum("bidexy,oixy->bodexy", both_sides(data, patches(first, 6, 1)), both_sides(filters, second))
    tiles = both_sides(results.T, products)
    batch, channels, down, across, *_ = tiles.shape
    images = tiles.transpose(3, 4).reshape(batch, channels, down * TILE, across * TILE)
    return images[:, :, : like.shape[2], : like.shape[3]]


def allowed_error(kind, operands, dtype):
    """Return the error that each element of a map may have.

    A sum of n terms of either sign errs by about sqrt(n) roundings; four times that is not seen in millions of numbers.
    Absolute values bound what each rounding can reach.
    """
    first, _, like = operands[kind]
    terms = first.shape[1]
    if kind == CONV_WEIGHT:
        terms = first.shape[0] * -(-first.shape[2] // TILE) * -(-first.shape[3] // TILE)
    absolute = {k: tuple(t.double().abs() for t in v) for k, v in operands.items()}
    most = filtered(kind, absolute, [m.abs() for m in transforms()])
    computing = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    truth, _ = exact(kind, operands, 3, 1)
    return 4 * (ROUNDINGS + terms) ** 0.5 * computing * most + torch.finfo(dtype).eps * truth.abs()
