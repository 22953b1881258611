"""Walk over a sample in tiles of pixels x channels, in either layout, and move between channels and their groups.

A program takes a bundle of groups, side by side. Groups are padded to a power of two of places, so that a bundle is a
row of BUNDLE * LANES places, of which those of no channel are masked.
"""

import triton
import triton.language as tl
from torch import Tensor

from cdn_kernels.backends.triton.launch import power_of_two


@triton.jit
def places(bundle, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BUNDLE: tl.constexpr, LANES: tl.constexpr):
    """Return (the channel, whether there is one) for the places of a bundle of groups of WIDTH channels."""
    place = tl.arange(0, BUNDLE * LANES)
    if WIDTH == LANES:  # consecutive, as the compiler should see
        channel = bundle * (BUNDLE * LANES) + place
    else:
        channel = (bundle * BUNDLE + place // LANES) * WIDTH + place % LANES
    used = (bundle * (BUNDLE * LANES) + place < GROUPS * LANES) & (place % LANES < WIDTH)
    return channel, used


@triton.jit
def tile(first, channel, used, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr):
    """Return (offsets within the sample, which of them count) of ROWS pixels from the first; LAST is channels last."""
    pixel = first + tl.arange(0, ROWS)
    offsets = pixel[:, None] * CHANNELS + channel[None, :] if LAST else pixel[:, None] + (channel * PIXELS)[None, :]
    return offsets, (pixel < PIXELS)[:, None] & used[None, :]


@triton.jit
def of_groups(values, BUNDLE: tl.constexpr, LANES: tl.constexpr):
    """Sum values of places, 0 where unused, over the places of each group."""
    return tl.sum(tl.reshape(values, [BUNDLE, LANES]), 1)


@triton.jit
def of_places(values, BUNDLE: tl.constexpr, LANES: tl.constexpr):
    """Give every place the value of its group."""
    return tl.reshape(tl.broadcast_to(values[:, None], [BUNDLE, LANES]), [BUNDLE * LANES])


def shape_of_tiles(pixels: int, places: int, x: Tensor) -> tuple[int, int]:
    """Return (pixels of a tile, warps) for so many pixels and places; a thread gets 16 bytes of half precision."""
    elements, most = (4, 8) if x.element_size() == 8 else (8, 16)
    warp = 32 * elements
    warps = max(4, min(most, power_of_two(pixels * places) // (4 * warp)), min(16, places // warp))
    return max(1, min(warps * warp // places, power_of_two(pixels))), warps
