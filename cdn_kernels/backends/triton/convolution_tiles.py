"""The tiles of convolutions, for each map, size of an element and shape of the result: data.

Chosen by what they use when compiled for sm_80 and sm_90 by Triton 3.6 to 3.9: no spills, and at most 99 KiB of shared
memory, which every GPU from compute capability 8.0 has. Their order of speed is not measured.
"""

from typing import NamedTuple

from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT


class Tile(NamedTuple):
    """What a program computes: rows x columns of the result, from products of length depth."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# (columns up to, None for any; rows from; tile), of which the first that fits counts.
Choices = tuple[tuple[int | None, int, Tile], ...]

# Programs that a weight gradient is cut into, at least, if it has the pixels: two for each multiprocessor of an H100.
# A constant, so that the order of sums depends on nothing but shapes.
PROGRAMS = 264
# What a part is worth cutting for: pixels.
SHORTEST_PART = 1024

_HALF: Choices = (
    (32, 0, Tile(128, 32, 32, 4, 4)),
    (64, 0, Tile(128, 64, 64, 8, 4)),
    (None, 1 << 14, Tile(128, 128, 32, 8, 4)),
    (None, 0, Tile(64, 64, 64, 4, 4)),
)
_SINGLE: Choices = ((32, 0, Tile(64, 32, 32, 4, 3)), (None, 0, Tile(64, 64, 32, 4, 3)))
_DOUBLE: Choices = ((None, 0, Tile(32, 32, 16, 4, 2)),)
# By map and bytes of an element. Rows of a result are pixels and its columns channels; for filters, outputs, and pairs
# of a tap and an input.
TILES: dict[tuple[int, int], Choices] = {
    (CONV_FORWARD, 2): _HALF,
    (CONV_INPUT, 2): _HALF,
    (CONV_WEIGHT, 2): ((None, 128, Tile(128, 64, 64, 4, 4)), (None, 0, Tile(64, 64, 64, 4, 4))),
    (CONV_FORWARD, 4): _SINGLE,
    (CONV_INPUT, 4): _SINGLE,
    (CONV_WEIGHT, 4): ((None, 0, Tile(64, 64, 32, 4, 3)),),
    (CONV_FORWARD, 8): _DOUBLE,
    (CONV_INPUT, 8): _DOUBLE,
    (CONV_WEIGHT, 8): _DOUBLE,
}
# By bytes of an element, for every map, where channels do not fill loads of 16 bytes: these are loaded one by one, each
# at an address of its own.
RAGGED: dict[int, Choices] = {
    2: ((16, 0, Tile(128, 16, 32, 4, 3)), (None, 0, Tile(64, 64, 32, 8, 3))),
    4: ((None, 0, Tile(64, 32, 16, 4, 3)),),
    8: _DOUBLE,
}


def tile_for(kind: int, bytes_of_element: int, rows: int, columns: int, inputs: int, outputs: int) -> Tile:
    """Return the Tile for a map to a result of so many rows and columns, of a layer of inputs and outputs."""
    whole = inputs * bytes_of_element % 16 == 0 and outputs * bytes_of_element % 16 == 0
    choices = TILES[kind, bytes_of_element] if whole else RAGGED[bytes_of_element]
    return next(tile for most, least, tile in choices if rows >= least and (most is None or columns <= most))
