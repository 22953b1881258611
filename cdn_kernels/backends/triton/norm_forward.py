"""The forward sweep of residual + GELU + group normalization."""

import triton
import triton.language as tl

from cdn_kernels.backends.triton.math import gelu, load, rounded, store
from cdn_kernels.backends.triton.norm_sweeps import (
    FOLD,
    SUM,
    WHOLE,
    WRITE,
    centre,
    over_groups,
    program,
    scales,
    sum_row,
)
from cdn_kernels.backends.triton.tiles import of_groups, of_places, tile


@triton.jit
def _added(x, residual, offsets, inside, REAL: tl.constexpr):
    """Load v = x + residual, rounded to its storage type."""
    v = load(x, offsets, inside, REAL)
    if residual is not None:
        v = rounded(v + load(residual, offsets, inside, REAL), x.dtype.element_ty).to(REAL)
    return v


@triton.jit
def _moments(
    x,
    residual,
    v,
    pivot,
    first,
    channel,
    used,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    REAL: tl.constexpr,
):
    """Write v, and return for each channel the mean of b - pivot and the sum of squares about that mean.

    Welford's recurrence in each place of the tile, whose means and squares are then merged: sums of squares about
    the true mean, in one reading.
    """
    one = tl.full([], 1.0, REAL)
    mean = tl.zeros([ROWS, used.shape[0]], REAL)
    squares = tl.zeros([ROWS, used.shape[0]], REAL)
    for step in range(0, CHUNK, ROWS):
        offsets, inside = tile(first + step, channel, used, PIXELS, CHANNELS, LAST, ROWS)
        element = _added(x, residual, offsets, inside, REAL)
        if residual is not None:
            store(v, offsets, element, inside)
        b = gelu(element)[0]
        shifted = b - pivot[None, :]
        difference = tl.where(inside, shifted - mean, 0.0)
        mean += difference * (one / (step // ROWS + 1))
        squares += difference * (shifted - mean)
    count = tl.minimum(CHUNK, PIXELS - first)
    visits = (tl.maximum(count - tl.arange(0, ROWS) + (ROWS - 1), 0) // ROWS)[:, None] * one
    together = tl.sum(visits * mean, 0) / (count * one)
    difference = mean - together[None, :]
    return together, tl.sum(squares + visits * difference * difference, 0)


@triton.jit
def _merged_moments(
    moments,
    channel,
    used,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    REAL: tl.constexpr,
):
    """Merge the moments of chunks of pixels, in their order, into those of the sample."""
    one = tl.full([], 1.0, REAL)
    mean = tl.zeros([used.shape[0]], REAL)
    for chunk in range(CHUNKS):
        count = tl.minimum(CHUNK, PIXELS - chunk * CHUNK) * one
        mean += count / PIXELS * tl.load(sum_row(moments, chunk, 0, 2, channel, CHANNELS), mask=used, other=0.0)
    squares = tl.zeros([used.shape[0]], REAL)
    for chunk in range(CHUNKS):
        count = tl.minimum(CHUNK, PIXELS - chunk * CHUNK) * one
        difference = tl.load(sum_row(moments, chunk, 0, 2, channel, CHANNELS), mask=used, other=0.0) - mean
        squares += tl.load(sum_row(moments, chunk, 1, 2, channel, CHANNELS), mask=used, other=0.0)
        squares += count * difference * difference
    return mean, squares


@triton.jit
def forward(
    x,
    residual,
    gain,
    statistics,
    v,
    out,
    sums,
    PHASE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BUNDLE: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    LAST: tl.constexpr,
    KEEP: tl.constexpr,
    EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    REAL: tl.constexpr,
):
    """Write v = x + residual, the statistics, and z; v is x if there is no residual."""
    CHANNELS: tl.constexpr = GROUPS * WIDTH
    sample, first, group, exists, channel, used = program(PHASE, GROUPS, WIDTH, BUNDLE, LANES, CHUNK)
    start = sample * (PIXELS * CHANNELS)
    x += start
    v += start
    out += start
    if residual is not None:
        residual += start
    if PHASE != WHOLE:
        sums += sample * CHUNKS * 2 * CHANNELS
    statistics += sample * (4 * GROUPS + 1)

    if PHASE != WRITE:
        # Differences from one value of each group keep the digits of a small variance beside a large mean.
        at = group * WIDTH if LAST else group * WIDTH * PIXELS
        pivot = gelu(_added(x, residual, at, exists, REAL))[0]
    if PHASE == WHOLE or PHASE == SUM:
        mean_c, squares_c = _moments(
            x,
            residual,
            v,
            of_places(pivot, BUNDLE, LANES),
            first,
            channel,
            used,
            PIXELS,
            CHANNELS,
            CHUNK,
            LAST,
            ROWS,
            REAL,
        )
    if PHASE == SUM:
        tl.store(sum_row(sums, tl.program_id(2), 0, 2, channel, CHANNELS), mean_c, mask=used)
        tl.store(sum_row(sums, tl.program_id(2), 1, 2, channel, CHANNELS), squares_c, mask=used)
    if PHASE == FOLD:
        mean_c, squares_c = _merged_moments(sums, channel, used, PIXELS, CHANNELS, CHUNK, CHUNKS, REAL)
    if PHASE == WHOLE or PHASE == FOLD:
        mean = of_groups(tl.where(used, mean_c, 0.0), BUNDLE, LANES) / WIDTH
        difference = mean_c - of_places(mean, BUNDLE, LANES)
        squares = tl.where(used, squares_c + PIXELS * difference * difference, 0.0)
        variance = of_groups(squares, BUNDLE, LANES) / (WIDTH * PIXELS)
        if KEEP:
            common = over_groups(variance, exists, GROUPS)
            dead = common <= FLOOR  # not where it is NaN, which stays NaN
            s = tl.where(dead, 0.0, tl.sqrt(common))
            inverse = tl.where(dead, 0.0, 1.0 / tl.where(dead, 1.0, variance + EPS * common))
            r = tl.sqrt(inverse)
        else:
            s = tl.full([], 1.0, REAL)
            inverse = 1.0 / (variance + EPS)
            r = tl.sqrt(inverse)
        k = variance * inverse
        tl.store(statistics + group, pivot, mask=exists)
        tl.store(statistics + GROUPS + group, mean, mask=exists)
        tl.store(statistics + 2 * GROUPS + group, r, mask=exists)
        tl.store(statistics + 3 * GROUPS + group, k, mask=exists)
        tl.store(statistics + 4 * GROUPS, s, mask=tl.program_id(1) == 0)
    if PHASE == WHOLE:
        tl.debug_barrier()  # v was written by other threads of the program
    if PHASE == WRITE:
        pivot, mean = centre(statistics, group, exists, GROUPS)
        r, k, s = scales(statistics, group, exists, GROUPS)
    if PHASE == WHOLE or PHASE == WRITE:
        pivot_c, mean_c = of_places(pivot, BUNDLE, LANES), of_places(mean, BUNDLE, LANES)
        scale = tl.load(gain + channel, mask=used, other=0.0) * s * of_places(r, BUNDLE, LANES)
        for step in range(0, CHUNK, ROWS):
            offsets, inside = tile(first + step, channel, used, PIXELS, CHANNELS, LAST, ROWS)
            b = gelu(load(v, offsets, inside, REAL))[0]
            store(out, offsets, scale[None, :] * (b - pivot_c[None, :] - mean_c[None, :]), inside)
