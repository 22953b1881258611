"""The kernels of residual + GELU + group normalization, one for each sweep; names and formulas: docs/derivations.md.

A sweep of a sample sums over its pixels, folds the sums of channels into scalars of groups, and writes. Where a program
takes all pixels of a bundle of groups, it does all three (WHOLE). Large samples are cut into chunks of pixels: one
launch sums those, a second folds, a third writes; sums and scalars go through small buffers. The scale-preserving norm
couples the groups of a sample, so that its bundles are all groups.
"""

import triton
import triton.language as tl

from cdn_kernels.backends.triton.math import gelu, load, rounded, store
from cdn_kernels.backends.triton.tiles import of_groups, of_places, places, tile

WHOLE, SUM, FOLD, WRITE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def _program(
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
def _row(sums, chunk, k, K: tl.constexpr, channel, CHANNELS: tl.constexpr):
    """Return pointers to the k-th of the K sums of a chunk, where sums are [chunks, K, channels]."""
    return sums + (chunk * K + k) * CHANNELS + channel


@triton.jit
def _total(sums, k, CHUNKS: tl.constexpr, K: tl.constexpr, channel, used, CHANNELS: tl.constexpr):
    """Add up the k-th of the K sums over the chunks of a sample, in their order."""
    total = tl.load(_row(sums, 0, k, K, channel, CHANNELS), mask=used, other=0.0)
    for chunk in range(1, CHUNKS):
        total += tl.load(_row(sums, chunk, k, K, channel, CHANNELS), mask=used, other=0.0)
    return total


@triton.jit
def _over_groups(values, exists, GROUPS: tl.constexpr):
    """Return the mean over the groups of a sample."""
    return tl.sum(tl.where(exists, values, 0.0), 0) / GROUPS


@triton.jit
def _centre(statistics, group, exists, GROUPS: tl.constexpr):
    """Load the mean of each group, as pivot + mean."""
    return (
        tl.load(statistics + group, mask=exists, other=0.0),
        tl.load(statistics + GROUPS + group, mask=exists, other=0.0),
    )


@triton.jit
def _scales(statistics, group, exists, GROUPS: tl.constexpr):
    """Load (r, k) of each group and s of the sample."""
    return (
        tl.load(statistics + 2 * GROUPS + group, mask=exists, other=0.0),
        tl.load(statistics + 3 * GROUPS + group, mask=exists, other=0.0),
        tl.load(statistics + 4 * GROUPS),
    )


@triton.jit
def _saved(statistics, group, exists, GROUPS: tl.constexpr, BUNDLE: tl.constexpr, LANES: tl.constexpr):
    """Load what a sweep after the first starts from: (pivot and mean of places, r, k, s)."""
    pivot, mean = _centre(statistics, group, exists, GROUPS)
    r, k, s = _scales(statistics, group, exists, GROUPS)
    return of_places(pivot, BUNDLE, LANES), of_places(mean, BUNDLE, LANES), r, k, s


# ------------------------------------------------------------------------------------------------------------
# Forward
# ------------------------------------------------------------------------------------------------------------


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
        mean += count / PIXELS * tl.load(_row(moments, chunk, 0, 2, channel, CHANNELS), mask=used, other=0.0)
    squares = tl.zeros([used.shape[0]], REAL)
    for chunk in range(CHUNKS):
        count = tl.minimum(CHUNK, PIXELS - chunk * CHUNK) * one
        difference = tl.load(_row(moments, chunk, 0, 2, channel, CHANNELS), mask=used, other=0.0) - mean
        squares += tl.load(_row(moments, chunk, 1, 2, channel, CHANNELS), mask=used, other=0.0)
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
    sample, first, group, exists, channel, used = _program(PHASE, GROUPS, WIDTH, BUNDLE, LANES, CHUNK)
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
        tl.store(_row(sums, tl.program_id(2), 0, 2, channel, CHANNELS), mean_c, mask=used)
        tl.store(_row(sums, tl.program_id(2), 1, 2, channel, CHANNELS), squares_c, mask=used)
    if PHASE == FOLD:
        mean_c, squares_c = _merged_moments(sums, channel, used, PIXELS, CHANNELS, CHUNK, CHUNKS, REAL)
    if PHASE == WHOLE or PHASE == FOLD:
        mean = of_groups(tl.where(used, mean_c, 0.0), BUNDLE, LANES) / WIDTH
        difference = mean_c - of_places(mean, BUNDLE, LANES)
        squares = tl.where(used, squares_c + PIXELS * difference * difference, 0.0)
        variance = of_groups(squares, BUNDLE, LANES) / (WIDTH * PIXELS)
        if KEEP:
            common = _over_groups(variance, exists, GROUPS)
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
        pivot, mean = _centre(statistics, group, exists, GROUPS)
        r, k, s = _scales(statistics, group, exists, GROUPS)
    if PHASE == WHOLE or PHASE == WRITE:
        pivot_c, mean_c = of_places(pivot, BUNDLE, LANES), of_places(mean, BUNDLE, LANES)
        scale = tl.load(gain + channel, mask=used, other=0.0) * s * of_places(r, BUNDLE, LANES)
        for step in range(0, CHUNK, ROWS):
            offsets, inside = tile(first + step, channel, used, PIXELS, CHANNELS, LAST, ROWS)
            b = gelu(load(v, offsets, inside, REAL))[0]
            store(out, offsets, scale[None, :] * (b - pivot_c[None, :] - mean_c[None, :]), inside)


# ------------------------------------------------------------------------------------------------------------
# Backward
# ------------------------------------------------------------------------------------------------------------


@triton.jit
def _projections(
    gain,
    sum_g,
    sum_gc,
    r,
    k,
    s,
    count,
    exists,
    GROUPS: tl.constexpr,
    BUNDLE: tl.constexpr,
    LANES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Return (mq, be, Q) and with them g_b = gain s r g + constant + centred c: (constant, centred)."""
    mq = of_groups(gain * sum_g, BUNDLE, LANES) / count
    be = of_groups(gain * sum_gc, BUNDLE, LANES) / count * r
    Q = _over_groups(k * be, exists, GROUPS) if KEEP else s * 0.0
    pull = Q / tl.where(s == 0, 1.0, s)
    return mq, be, Q, -s * r * mq, pull - s * r * r * be


@triton.jit
def backward(
    v,
    grad,
    source,
    gain,
    statistics,
    out,
    gain_grad,
    sums,
    scalars,
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
    REAL: tl.constexpr,
):
    """Write phi' g_b + source and the sample's share in the gradient of the gain: the score and adjoint sweeps."""
    CHANNELS: tl.constexpr = GROUPS * WIDTH
    sample, first, group, exists, channel, used = _program(PHASE, GROUPS, WIDTH, BUNDLE, LANES, CHUNK)
    start = sample * (PIXELS * CHANNELS)
    v += start
    grad += start
    out += start
    if source is not None:
        source += start
    if PHASE != WHOLE:
        sums += sample * CHUNKS * 2 * CHANNELS
        scalars += sample * 2 * GROUPS
    statistics += sample * (4 * GROUPS + 1)
    pivot_c, mean_c, r, k, s = _saved(statistics, group, exists, GROUPS, BUNDLE, LANES)

    if PHASE == WHOLE or PHASE == SUM:
        g_sums = tl.zeros([ROWS, BUNDLE * LANES], REAL)
        gc_sums = tl.zeros([ROWS, BUNDLE * LANES], REAL)
        for step in range(0, CHUNK, ROWS):
            offsets, inside = tile(first + step, channel, used, PIXELS, CHANNELS, LAST, ROWS)
            b = gelu(load(v, offsets, inside, REAL))[0]
            g = load(grad, offsets, inside, REAL)
            g_sums += g
            gc_sums += g * (b - pivot_c[None, :] - mean_c[None, :])
        sum_g, sum_gc = tl.sum(g_sums, 0), tl.sum(gc_sums, 0)
    if PHASE == SUM:
        tl.store(_row(sums, tl.program_id(2), 0, 2, channel, CHANNELS), sum_g, mask=used)
        tl.store(_row(sums, tl.program_id(2), 1, 2, channel, CHANNELS), sum_gc, mask=used)
    if PHASE == FOLD:
        sum_g = _total(sums, 0, CHUNKS, 2, channel, used, CHANNELS)
        sum_gc = _total(sums, 1, CHUNKS, 2, channel, used, CHANNELS)
    gains = tl.load(gain + channel, mask=used, other=0.0)  # not before, where registers are scarce
    if PHASE == WHOLE or PHASE == FOLD:
        mq, be, Q, constant, centred = _projections(
            gains, sum_g, sum_gc, r, k, s, WIDTH * PIXELS, exists, GROUPS, BUNDLE, LANES, KEEP
        )
        if gain_grad is not None:
            tl.store(gain_grad + sample * CHANNELS + channel, s * of_places(r, BUNDLE, LANES) * sum_gc, mask=used)
    if PHASE == FOLD:
        tl.store(scalars + group, constant, mask=exists)
        tl.store(scalars + GROUPS + group, centred, mask=exists)
    if PHASE == WRITE:
        constant = tl.load(scalars + group, mask=exists, other=0.0)
        centred = tl.load(scalars + GROUPS + group, mask=exists, other=0.0)
    if PHASE == WHOLE or PHASE == WRITE:
        of_grad = gains * s * of_places(r, BUNDLE, LANES)
        constant_c, centred_c = of_places(constant, BUNDLE, LANES), of_places(centred, BUNDLE, LANES)
        for step in range(0, CHUNK, ROWS):
            offsets, inside = tile(first + step, channel, used, PIXELS, CHANNELS, LAST, ROWS)
            b, slope, bend = gelu(load(v, offsets, inside, REAL))
            c = b - pivot_c[None, :] - mean_c[None, :]
            g_b = of_grad[None, :] * load(grad, offsets, inside, REAL) + constant_c[None, :] + centred_c[None, :] * c
            result = slope * g_b
            if source is not None:
                result += load(source, offsets, inside, REAL)
            store(out, offsets, result, inside)


# ------------------------------------------------------------------------------------------------------------
# Tangent
# ------------------------------------------------------------------------------------------------------------


@triton.jit
def _curvature(
    mq,
    be,
    Q,
    sum_b,
    sum_bc,
    sum_gb,
    gain,
    r,
    k,
    s,
    count,
    exists,
    GROUPS: tl.constexpr,
    BUNDLE: tl.constexpr,
    LANES: tl.constexpr,
    KEEP: tl.constexpr,
    EPS: tl.constexpr,
):
    """Return the scalars of groups of J = s r bdot + j_0 + j_c c and e = e_b bdot + e_q q + e_0 + e_c c."""
    mb = of_groups(sum_b, BUNDLE, LANES) / count
    al = of_groups(sum_bc, BUNDLE, LANES) / count * r
    R = of_groups(gain * sum_gb, BUNDLE, LANES) / count - mq * mb
    if KEEP:
        # In a dead sample r, k and s are 0, and so is everything below.
        alive_r, alive_s = tl.where(r == 0, 1.0, r), tl.where(s == 0, 1.0, s)
        C = _over_groups(al / alive_r, exists, GROUPS)
        W = s * (R - 3 * al * be) + 3 * k * be * C / (alive_r * alive_s)
        D = -EPS / 2 * _over_groups(r * r * r * W, exists, GROUPS) + (
            _over_groups(r * (R - al * be), exists, GROUPS) - Q * C / (alive_s * alive_s)
        ) / (2 * alive_s)
        j_c = -s * r * r * al + C / alive_s * k * r
        e_b = Q / alive_s - s * r * r * be
        e_q = k * r * C / alive_s - s * r * r * al
        e_c = 2 * (r * r * be * C / alive_s - r * r * r * W / 2 + D)
    else:
        j_c = -r * r * al
        e_b = -r * r * be
        e_q = -r * r * al
        e_c = -r * r * r * (R - 3 * al * be)
    return -s * r * mb, j_c, e_b, e_q, -e_b * mb - e_q * mq, e_c


@triton.jit
def tangent(
    v,
    grad,
    dot,
    gain,
    statistics,
    out,
    tangent_out,
    gain_grad,
    sums,
    scalars,
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
    REAL: tl.constexpr,
):
    """Write zdot, the source phi' e + phi'' vdot g_b of the adjoint sweep, and the share in the gain's gradient."""
    CHANNELS: tl.constexpr = GROUPS * WIDTH
    sample, first, group, exists, channel, used = _program(PHASE, GROUPS, WIDTH, BUNDLE, LANES, CHUNK)
    start = sample * (PIXELS * CHANNELS)
    v += start
    grad += start
    dot += start
    out += start
    tangent_out += start
    if PHASE != WHOLE:
        sums += sample * CHUNKS * 5 * CHANNELS
        scalars += sample * 8 * GROUPS
    statistics += sample * (4 * GROUPS + 1)
    pivot_c, mean_c, r, k, s = _saved(statistics, group, exists, GROUPS, BUNDLE, LANES)

    if PHASE == WHOLE or PHASE == SUM:
        g_sums = tl.zeros([ROWS, BUNDLE * LANES], REAL)
        gc_sums = tl.zeros([ROWS, BUNDLE * LANES], REAL)
        b_sums = tl.zeros([ROWS, BUNDLE * LANES], REAL)
        bc_sums = tl.zeros([ROWS, BUNDLE * LANES], REAL)
        gb_sums = tl.zeros([ROWS, BUNDLE * LANES], REAL)
        for step in range(0, CHUNK, ROWS):
            offsets, inside = tile(first + step, channel, used, PIXELS, CHANNELS, LAST, ROWS)
            b, slope, bend = gelu(load(v, offsets, inside, REAL))
            g = load(grad, offsets, inside, REAL)
            c = b - pivot_c[None, :] - mean_c[None, :]
            bdot = slope * load(dot, offsets, inside, REAL)
            g_sums += g
            gc_sums += g * c
            b_sums += bdot
            bc_sums += bdot * c
            gb_sums += g * bdot
        sum_g, sum_gc, sum_b = tl.sum(g_sums, 0), tl.sum(gc_sums, 0), tl.sum(b_sums, 0)
        sum_bc, sum_gb = tl.sum(bc_sums, 0), tl.sum(gb_sums, 0)
    if PHASE == SUM:
        chunk = tl.program_id(2)
        tl.store(_row(sums, chunk, 0, 5, channel, CHANNELS), sum_g, mask=used)
        tl.store(_row(sums, chunk, 1, 5, channel, CHANNELS), sum_gc, mask=used)
        tl.store(_row(sums, chunk, 2, 5, channel, CHANNELS), sum_b, mask=used)
        tl.store(_row(sums, chunk, 3, 5, channel, CHANNELS), sum_bc, mask=used)
        tl.store(_row(sums, chunk, 4, 5, channel, CHANNELS), sum_gb, mask=used)
    if PHASE == FOLD:
        sum_g = _total(sums, 0, CHUNKS, 5, channel, used, CHANNELS)
        sum_gc = _total(sums, 1, CHUNKS, 5, channel, used, CHANNELS)
        sum_b = _total(sums, 2, CHUNKS, 5, channel, used, CHANNELS)
        sum_bc = _total(sums, 3, CHUNKS, 5, channel, used, CHANNELS)
        sum_gb = _total(sums, 4, CHUNKS, 5, channel, used, CHANNELS)
    gains = tl.load(gain + channel, mask=used, other=0.0)  # not before, where registers are scarce
    if PHASE == WHOLE or PHASE == FOLD:
        count = WIDTH * PIXELS
        mq, be, Q, g_0, g_c = _projections(gains, sum_g, sum_gc, r, k, s, count, exists, GROUPS, BUNDLE, LANES, KEEP)
        j_0, j_c, e_b, e_q, e_0, e_c = _curvature(
            mq, be, Q, sum_b, sum_bc, sum_gb, gains, r, k, s, count, exists, GROUPS, BUNDLE, LANES, KEEP, EPS
        )
        if gain_grad is not None:
            share = (
                s * of_places(r, BUNDLE, LANES) * sum_gb
                + of_places(j_0, BUNDLE, LANES) * sum_g
                + of_places(j_c, BUNDLE, LANES) * sum_gc
            )
            tl.store(gain_grad + sample * CHANNELS + channel, share, mask=used)
    if PHASE == FOLD:
        tl.store(scalars + group, g_0, mask=exists)
        tl.store(scalars + GROUPS + group, g_c, mask=exists)
        tl.store(scalars + 2 * GROUPS + group, j_0, mask=exists)
        tl.store(scalars + 3 * GROUPS + group, j_c, mask=exists)
        tl.store(scalars + 4 * GROUPS + group, e_b, mask=exists)
        tl.store(scalars + 5 * GROUPS + group, e_q, mask=exists)
        tl.store(scalars + 6 * GROUPS + group, e_0, mask=exists)
        tl.store(scalars + 7 * GROUPS + group, e_c, mask=exists)
    if PHASE == WRITE:
        g_0 = tl.load(scalars + group, mask=exists, other=0.0)
        g_c = tl.load(scalars + GROUPS + group, mask=exists, other=0.0)
        j_0 = tl.load(scalars + 2 * GROUPS + group, mask=exists, other=0.0)
        j_c = tl.load(scalars + 3 * GROUPS + group, mask=exists, other=0.0)
        e_b = tl.load(scalars + 4 * GROUPS + group, mask=exists, other=0.0)
        e_q = tl.load(scalars + 5 * GROUPS + group, mask=exists, other=0.0)
        e_0 = tl.load(scalars + 6 * GROUPS + group, mask=exists, other=0.0)
        e_c = tl.load(scalars + 7 * GROUPS + group, mask=exists, other=0.0)
    if PHASE == WHOLE or PHASE == WRITE:
        scale = s * of_places(r, BUNDLE, LANES)[None, :]
        row = gains[None, :]
        g_0, g_c = of_places(g_0, BUNDLE, LANES)[None, :], of_places(g_c, BUNDLE, LANES)[None, :]
        j_0, j_c = of_places(j_0, BUNDLE, LANES)[None, :], of_places(j_c, BUNDLE, LANES)[None, :]
        e_b, e_q = of_places(e_b, BUNDLE, LANES)[None, :], of_places(e_q, BUNDLE, LANES)[None, :]
        e_0, e_c = of_places(e_0, BUNDLE, LANES)[None, :], of_places(e_c, BUNDLE, LANES)[None, :]
        for step in range(0, CHUNK, ROWS):
            offsets, inside = tile(first + step, channel, used, PIXELS, CHANNELS, LAST, ROWS)
            b, slope, bend = gelu(load(v, offsets, inside, REAL))
            vdot = load(dot, offsets, inside, REAL)
            q = row * load(grad, offsets, inside, REAL)
            c = b - pivot_c[None, :] - mean_c[None, :]
            bdot = slope * vdot
            store(tangent_out, offsets, row * (scale * bdot + j_0 + j_c * c), inside)
            g_b = scale * q + g_0 + g_c * c
            e = e_b * bdot + e_q * q + e_0 + e_c * c
            store(out, offsets, slope * e + bend * vdot * g_b, inside)
