"""The error that convolutions by minimal filtering may have: their transforms, applied to absolute values."""

import itertools

import torch
import torch.nn.functional as F

from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT
from tests.kernels.convolutions import exact

A, B = 0.5**0.5, 2**0.5
# The points besides infinity, by the side of a tile, that of the filters, and the stride.
POINTS = {
    (4, 3, 1): (0, A, -A, B, -B),
    (8, 3, 1): (0, 0.4, -0.4, 0.8, -0.8, 1.25, -1.25, 2.5, -2.5),
    (4, 3, 2): (0.4, -0.4, 1.2, -1.2),
    (4, 5, 2): (0, A, -A, B, -B),
}
# By the side of the filters and the stride, for phases of images, which are their rows or columns by parity: which taps
# of a filter they meet, None for none, and how many pixels before those of a tile they begin.
TAPS = {
    (3, 1): {False: ([0, 1, 2], 1)},
    (3, 2): {False: ([1, None], 0), True: ([0, 2], 1)},
    (5, 2): {False: ([0, 2, 4], 2), True: ([None, 1, 3], 3)},
}
# How many gradients before those of a tile the patches of a gradient by the images begin.
BEFORE = {(3, 1): 1, (3, 2): 0, (5, 2): 1}
# The roundings that a value passes: one more than half of the points in one dimension, for two dimensions and three
# transforms, and in storage.
ROUNDINGS = {4: 19, 8: 31}


def side(kind, images, stride=1):
    """Return the side of the tiles of a map of a convolution of images: large in 16 bits, if there are many."""
    batch, _, height, width = images.shape
    if stride > 1 or torch.finfo(images.dtype).bits > 16:
        return 4
    tiles = {side: -(-height // side) * -(-width // side) for side in (4, 8)}
    enough = batch * tiles[8] >= (32 if kind == CONV_WEIGHT else 64)
    return 8 if enough and 100 * tiles[8] <= 0.8 * 36 * tiles[4] else 4


def transforms(tile, size=3, stride=1):
    """Return the matrices of one dimension for tiles [tile] and the t taps of a phase, in float64.

    With p = tile + t - 1 neighbours, they are those of data [p, p], of filters [p, t] and of results [p, tile].
    """
    points = torch.tensor(POINTS[tile, size, stride], dtype=torch.float64)
    count = len(points)
    taps = count + 2 - tile
    others = [torch.cat([points[:i], points[i + 1 :]]) for i in range(count)]
    # What the data are multiplied with are the coefficients of prod (x - p) over the other points, or over all.
    data = torch.stack([_polynomial(roots, count + 1) for roots in [*others, points]])
    filters = torch.stack([points[i] ** torch.arange(taps) / (points[i] - others[i]).prod() for i in range(count)])
    results = torch.stack([points[i] ** torch.arange(tile) for i in range(count)])
    last = lambda size: torch.eye(size, dtype=torch.float64)[-1:]
    return data, torch.cat([filters, last(taps)]), torch.cat([results, last(tile)])


def _polynomial(roots, size):
    """Return the coefficients of prod (x - root), the constant first, followed by zeros."""
    coefficients = torch.ones(1, dtype=torch.float64)
    for root in roots:
        coefficients = F.pad(coefficients, (1, 0)) - root * F.pad(coefficients, (0, 1))
    return F.pad(coefficients, (0, size - len(coefficients)))


def patches(x, size, step, counts):
    """Return patches [B, C, down, across, size, size] of images, as many as counts, a step apart; 0 is outside."""
    height, width = ((count - 1) * step + size for count in counts)
    x = F.pad(x, (0, max(0, width - x.shape[3]), 0, max(0, height - x.shape[2])))[..., :height, :width]
    return x.unfold(2, size, step).unfold(3, size, step)


def both_sides(matrix, x):
    """Return matrix x matrix'."""
    return matrix @ x @ matrix.T


def taps_of(filters, rows, columns):
    """Return the rows and columns of filters with zeros where there is none."""
    there = [tap if tap is not None else 0 for tap in rows], [tap if tap is not None else 0 for tap in columns]
    is_there = torch.tensor([[None not in (row, column) for column in columns] for row in rows])
    return filters[..., there[0], :][..., there[1]] * is_there


def filtered(kind, operands, matrices, size=3, stride=1):
    """Return a map of a convolution by minimal filtering with some matrices of one dimension."""
    data, filters, results = matrices
    neighbours, tile = len(filters), results.shape[1]
    first, second, like = (t.double() for t in operands[kind])
    grid = (second if kind == CONV_WEIGHT else first if kind == CONV_INPUT else like).shape[2:]
    counts = [-(-side // tile) for side in grid]
    out, total = torch.zeros_like(like), 0
    if kind == CONV_INPUT:
        second = second.flip(2, 3).transpose(0, 1)
        before = BEFORE[size, stride]
        gradients = both_sides(data, patches(F.pad(first, (before, 0, before, 0)), neighbours, tile, counts))
    for odd_y, odd_x in itertools.product(TAPS[size, stride], repeat=2):
        (rows, above), (columns, left) = TAPS[size, stride][odd_y], TAPS[size, stride][odd_x]
        if kind == CONV_INPUT:
            part = both_sides(filters, taps_of(second, rows, columns))
            place = out[..., odd_y::stride, odd_x::stride]
            products = torch.einsum("bidexy,oixy->bodexy", gradients, part)
            place.copy_(whole(both_sides(results.T, products), place))
            continue
        phase = F.pad(first, (left, 0, above, 0))[..., ::stride, ::stride]
        images = both_sides(data, patches(phase, neighbours, tile, counts))
        if kind == CONV_WEIGHT:
            by = both_sides(results, patches(second, tile, tile, counts))
            part = both_sides(filters.T, torch.einsum("bidexy,bodexy->oixy", images, by))
            for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
                if row is not None and column is not None:
                    out[..., row, column] = part[..., i, j]
        else:
            part = both_sides(filters, taps_of(second, rows, columns))
            total = torch.einsum("bidexy,oixy->bodexy", images, part) + total
    return whole(both_sides(results.T, total), out) if kind == CONV_FORWARD else out


def whole(tiles, like):
    """Return the images that tiles [B, C, down, across, side, side] are parts of."""
    batch, channels, down, across, tile, _ = tiles.shape
    images = tiles.transpose(3, 4).reshape(batch, channels, down * tile, across * tile)
    return images[:, :, : like.shape[2], : like.shape[3]]


def allowed_error(kind, operands, dtype, size=3, stride=1):
    """Return the error that each element of a map may have.

    A sum of n terms of either sign errs by about sqrt(n) roundings; four times that is not seen in millions of numbers.
    Absolute values bound what each rounding can reach.
    """
    first, second, _ = operands[kind]
    tile = side(kind, first, stride)
    terms = first.shape[1] * stride**2
    if kind == CONV_WEIGHT:
        terms = first.shape[0] * -(-second.shape[2] // tile) * -(-second.shape[3] // tile)
    absolute = {k: tuple(t.double().abs() for t in v) for k, v in operands.items()}
    most = filtered(kind, absolute, [m.abs() for m in transforms(tile, size, stride)], size, stride)
    computing = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    truth, _ = exact(kind, operands, size, stride)
    return 4 * (ROUNDINGS[tile] + terms) ** 0.5 * computing * most + torch.finfo(dtype).eps * truth.abs()
