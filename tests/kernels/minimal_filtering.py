"""The error that convolutions by minimal filtering may have: their transforms, applied to absolute values."""

import torch
import torch.nn.functional as F

from cdn_kernels.backends.interface import CONV_INPUT, CONV_WEIGHT
from tests.kernels.convolutions import exact

POINTS = {4: (0.5**0.5, 2**0.5), 8: (0.4, 0.8, 1.25, 2.5)}  # by the side of a tile; and their negatives, 0 and infinity
# The roundings that a value passes: one more than pairs of points in one dimension, for two dimensions and three
# transforms, and in storage.
ROUNDINGS = {4: 19, 8: 31}


def side(kind, images):
    """Return the side of the tiles of a map of a 3x3 convolution of images: large in 16 bits, if there are many."""
    batch, _, height, width = images.shape
    if torch.finfo(images.dtype).bits > 16:
        return 4
    tiles = {side: -(-height // side) * -(-width // side) for side in POINTS}
    enough = batch * tiles[8] >= (32 if kind == CONV_WEIGHT else 64)
    return 8 if enough and 100 * tiles[8] <= 0.8 * 36 * tiles[4] else 4


def transforms(tile):
    """Return the matrices of one dimension for tiles [tile] and p = tile + 2 neighbours, in float64.

    They are those of data [p, p], of filters [p, 3] and of results [p, tile].
    """
    points = torch.tensor([0, *(sign * p for p in POINTS[tile] for sign in (1, -1))], dtype=torch.float64)
    count = len(points)
    others = [torch.cat([points[:i], points[i + 1 :]]) for i in range(count)]
    # What the data are multiplied with are the coefficients of prod (x - p) over the other points, or over all.
    data = torch.stack([_polynomial(roots, tile + 2) for roots in [*others, points]])
    filters = torch.stack([points[i] ** torch.arange(3) / (points[i] - others[i]).prod() for i in range(count)])
    results = torch.stack([points[i] ** torch.arange(tile) for i in range(count)])
    last = lambda size: torch.eye(size, dtype=torch.float64)[-1:]
    return data, torch.cat([filters, last(3)]), torch.cat([results, last(tile)])


def _polynomial(roots, size):
    """Return the coefficients of prod (x - root), the constant first, followed by zeros."""
    coefficients = torch.ones(1, dtype=torch.float64)
    for root in roots:
        coefficients = F.pad(coefficients, (1, 0)) - root * F.pad(coefficients, (0, 1))
    return F.pad(coefficients, (0, size - len(coefficients)))


def patches(x, tile, around):
    """Return the patches [B, C, tiles down, tiles across, size, size] of tiles of images and of the pixels around."""
    height, width = (-(-side // tile) * tile for side in x.shape[2:])
    x = F.pad(x, (around, width - x.shape[3] + around, around, height - x.shape[2] + around))
    size = tile + 2 * around
    return x.unfold(2, size, tile).unfold(3, size, tile)


def both_sides(matrix, x):
    """Return matrix x matrix'."""
    return matrix @ x @ matrix.T


def filtered(kind, operands, matrices):
    """Return a map of a 3x3 convolution by minimal filtering with some matrices of one dimension."""
    data, filters, results = matrices
    tile = results.shape[1]
    first, second, like = (t.double() for t in operands[kind])
    if kind == CONV_WEIGHT:
        x, g = (both_sides(m, patches(t, tile, n)) for m, t, n in ((data, first, 1), (results, second, 0)))
        return both_sides(filters.T, torch.einsum("bidexy,bodexy->oixy", x, g))
    if kind == CONV_INPUT:
        second = second.flip(2, 3).transpose(0, 1)
    products = torch.einsum(
        "bidexy,oixy->bodexy", both_sides(data, patches(first, tile, 1)), both_sides(filters, second)
    )
    tiles = both_sides(results.T, products)
    batch, channels, down, across, *_ = tiles.shape
    images = tiles.transpose(3, 4).reshape(batch, channels, down * tile, across * tile)
    return images[:, :, : like.shape[2], : like.shape[3]]


def allowed_error(kind, operands, dtype):
    """Return the error that each element of a map may have.

    A sum of n terms of either sign errs by about sqrt(n) roundings; four times that is not seen in millions of numbers.
    Absolute values bound what each rounding can reach.
    """
    first, _, like = operands[kind]
    tile = side(kind, first)
    terms = first.shape[1]
    if kind == CONV_WEIGHT:
        terms = first.shape[0] * -(-first.shape[2] // tile) * -(-first.shape[3] // tile)
    absolute = {k: tuple(t.double().abs() for t in v) for k, v in operands.items()}
    most = filtered(kind, absolute, [m.abs() for m in transforms(tile)])
    computing = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    truth, _ = exact(kind, operands, 3, 1)
    return 4 * (ROUNDINGS[tile] + terms) ** 0.5 * computing * most + torch.finfo(dtype).eps * truth.abs()
