"""The error that convolutions by minimal filtering may have: their transforms, applied to absolute values."""

import itertools

import torch
import torch.nn.functional as F

from cdn_kernels.backends.interface import CONV_INPUT, CONV_WEIGHT
from tests.kernels.convolutions import exact

A, B = 0.5**0.5, 2**0.5
# The points besides infinity, by the side of a tile and the stride.
POINTS = {
    (4, 1): (0, A, -A, B, -B),
    (8, 1): (0, 0.4, -0.4, 0.8, -0.8, 1.25, -1.25, 2.5, -2.5),
    (4, 2): (0.4, -0.4, 1.2, -1.2),
}
# The roundings that a value passes: one more than half of the points in one dimension, for two dimensions and three
# transforms, and in storage.
ROUNDINGS = {4: 19, 8: 31}


def side(kind, images, stride=1):
    """Return the side of the tiles of a map of a 3x3 convolution of images: large in 16 bits, if there are many."""
    batch, _, height, width = images.shape
    if stride > 1 or torch.finfo(images.dtype).bits > 16:
        return 4
    tiles = {side: -(-height // side) * -(-width // side) for side in (4, 8)}
    enough = batch * tiles[8] >= (32 if kind == CONV_WEIGHT else 64)
    return 8 if enough and 100 * tiles[8] <= 0.8 * 36 * tiles[4] else 4


def transforms(tile, stride=1):
    """Return the matrices of one dimension for tiles [tile] and t taps, 3 or for stride 2 two, in float64.

    With p = tile + t - 1 neighbours, they are those of data [p, p], of filters [p, t] and of results [p, tile].
    """
    points = torch.tensor(POINTS[tile, stride], dtype=torch.float64)
    count, taps = len(points), 4 - stride
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


def taps_of(odd, stride):
    """Return which taps of a filter meet the odd columns of an image, or the even ones; with stride 1 all are odd."""
    return [0, 1, 2] if stride == 1 else [0, 2] if odd else [1]


def filtered(kind, operands, matrices, stride=1):
    """Return a map of a 3x3 convolution by minimal filtering with some matrices of one dimension."""
    data, filters, results = matrices
    (neighbours, taps), tile = filters.shape, results.shape[1]
    first, second, like = (t.double() for t in operands[kind])
    grid = (second if kind == CONV_WEIGHT else first if kind == CONV_INPUT else like).shape[2:]
    counts = [-(-side // tile) for side in grid]
    if kind == CONV_INPUT:
        second = second.flip(2, 3).transpose(0, 1)
    out, total = torch.zeros_like(like), 0
    for phase in itertools.product((True,) if stride == 1 else (False, True), repeat=2):
        (rows, columns), (y, x) = (taps_of(odd, stride) for odd in phase), (1 - odd for odd in phase)
        begins = F.pad(first, (1, 0, 1, 0))
        begins = begins[..., y::stride, x::stride] if stride == 1 or kind != CONV_INPUT else first
        images = both_sides(data, patches(begins, neighbours, tile, counts))
        if kind == CONV_WEIGHT:
            gradients = both_sides(results, patches(second, tile, tile, counts))
            part = both_sides(filters.T, torch.einsum("bidexy,bodexy->oixy", images, gradients))
            for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
                out[..., row, column] = part[..., i, j]
            continue
        part = F.pad(second[..., rows, :][..., columns], (0, taps - len(columns), 0, taps - len(rows)))
        total = torch.einsum("bidexy,oixy->bodexy", images, both_sides(filters, part)) + total
        if kind == CONV_INPUT and stride > 1:
            place = out[..., phase[0] :: stride, phase[1] :: stride]
            place.copy_(whole(both_sides(results.T, total), place))
            total = 0
    return (
        out if kind == CONV_WEIGHT or (kind == CONV_INPUT and stride > 1) else whole(both_sides(results.T, total), out)
    )


def whole(tiles, like):
    """Return the images that tiles [B, C, down, across, side, side] are parts of."""
    batch, channels, down, across, tile, _ = tiles.shape
    images = tiles.transpose(3, 4).reshape(batch, channels, down * tile, across * tile)
    return images[:, :, : like.shape[2], : like.shape[3]]


def allowed_error(kind, operands, dtype, stride=1):
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
    most = filtered(kind, absolute, [m.abs() for m in transforms(tile, stride)], stride)
    computing = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    truth, _ = exact(kind, operands, 3, stride)
    return 4 * (ROUNDINGS[tile] + terms) ** 0.5 * computing * most + torch.finfo(dtype).eps * truth.abs()
