"""What the sweeps of residual + GELU + group normalization share; names and formulas: docs/derivations.md.

A sweep of a sample sums over its pixels, folds the sums of channels into scalars of groups, and writes. Where a program
takes all pixels of a bundle of groups, it does all three (WHOLE). Large samples are cut into chunks of pixels: one
launch sums those, a second folds, a third writes; sums and scalars go through small buffers. The scale-preserving norm
couples the groups of a sample, so that its bundles are all groups.
"""

import triton
import triton.language as tl

from cdn_kernels.backends.triton.tiles import of_places, places

WHOLE, SUM, FOLD, WRITE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def program(
    PHASE: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BUNDLE: tl.constexpr,
    LANES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Return what a program works on: (sample, first pixel, groups, which exist, channels of places, which exist)."""
    bundle = tl.program_id(1)
    group = bundle * BUNDLE + tl.arange(0, BUNDLE)
    channel, used = places(bundle, GROUPS, WIDTH, BUNDLE, LANES)
    first = 0 if PHASE == WHOLE else tl.program_id(2) * CHUNK
    return tl.program_id(0).to(tl.int64), first, group, group < GROUPS, channel, used


@triton.jit
def sum_row(sums, chunk, k, K: tl.constexpr, channel, CHANNELS: tl.constexpr):
    """Return pointers to the k-th of the K sums of a chunk, where sums are [chunks, K, channels]."""
    return sums + (chunk * K + k) * CHANNELS + channel


@triton.jit
def total(sums, k, CHUNKS: tl.constexpr, K: tl.constexpr, channel, used, CHANNELS: tl.constexpr):
    """Add up the k-th of the K sums over the chunks of a sample, in their order."""
    total = tl.load(sum_row(sums, 0, k, K, channel, CHANNELS), mask=used, other=0.0)
    for chunk in range(1, CHUNKS):
        total += tl.load(sum_row(sums, chunk, k, K, channel, CHANNELS), mask=used, other=0.0)
    return total


@triton.jit
def over_groups(values, exists, GROUPS: tl.constexpr):
    """Return the mean over the groups of a sample."""
    return tl.sum(tl.where(exists, values, 0.0), 0) / GROUPS


@triton.jit
def centre(statistics, group, exists, GROUPS: tl.constexpr):
    """Load the mean of each group, as pivot + mean."""
    return (
        tl.load(statistics + group, mask=exists, other=0.0),
        tl.load(statistics + GROUPS + group, mask=exists, other=0.0),
    )


@triton.jit
def scales(statistics, group, exists, GROUPS: tl.constexpr):
    """Load (r, k) of each group and s of the sample."""
    return (
        tl.load(statistics + 2 * GROUPS + group, mask=exists, other=0.0),
        tl.load(statistics + 3 * GROUPS + group, mask=exists, other=0.0),
        tl.load(statistics + 4 * GROUPS),
    )


@triton.jit
def saved(statistics, group, exists, GROUPS: tl.constexpr, BUNDLE: tl.constexpr, LANES: tl.constexpr):
    """Load what a sweep after the first starts from: (pivot and mean of places, r, k, s)."""
    pivot, mean = centre(statistics, group, exists, GROUPS)
    r, k, s = scales(statistics, group, exists, GROUPS)
    return of_places(pivot, BUNDLE, LANES), of_places(mean, BUNDLE, LANES), r, k, s
