"""Tiles of a large image, to which a function is applied one by one."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SMALLEST = 16


def split_tiles(height: int, width: int, size: int) -> list[tuple[slice, slice]]:
    """Return the tiles (slices of rows, slices of columns) that cover an image, evenly spaced.

    Args:
        height, width: of the image.
        size: side of a tile, at least 16; neighbours share at least max(8, size // 8) pixels.
    """
    return [(rows, columns) for rows in _spans(height, size) for columns in _spans(width, size)]


def in_tiles(function: Callable[[Tensor], Tensor], y: Tensor, size: int) -> Tensor:
    """Apply a function to overlapping tiles of an image and blend the results linearly.

    Args:
        function: from images [B, C, h, w] to images of that shape.
        y: [B, C, H, W].
        size: side of a tile, at least 16. One tile that covers the image is the function itself.

    Returns:
        [B, C, H, W].

    Limitations: a network whose norms take statistics over the whole image is another function on a tile.
    """
    _, _, height, width = y.shape
    tiles = split_tiles(height, width, size)
    if len(tiles) == 1:
        return function(y)
    total, weight = torch.zeros_like(y), torch.zeros_like(y[:1, :1])
    for rows, columns in tiles:
        window = _window(rows, y)[:, None] * _window(columns, y)
        total[:, :, rows, columns] += window * function(y[:, :, rows, columns])
        weight[:, :, rows, columns] += window
    return total / weight


def _spans(length: int, size: int) -> list[slice]:
    if length <= size:
        return [slice(0, length)]
    overlap = max(8, size // 8)
    count = math.ceil((length - overlap) / (size - overlap))
    starts = [round(k * (length - size) / (count - 1)) for k in range(count)]
    return [slice(start, start + size) for start in starts]


def _window(span: slice, like: Tensor) -> Tensor:
    """Return weights that rise linearly over the overlap at both ends, [span]."""
    size = span.stop - span.start
    ramp = max(8, size // 8)
    position = torch.arange(size, dtype=like.dtype, device=like.device)
    return (torch.minimum(position, position.flip(0)) + 1).clamp(max=ramp) / ramp
