"""The score and adjoint sweeps of residual + GELU + group normalization."""

import triton
import triton.language as tl

from cdn_kernels.backends.triton.math import gelu, load, store
from cdn_kernels.backends.triton.norm_sweeps import FOLD, SUM, WHOLE, WRITE, over_groups, program, saved, sum_row, total
from cdn_kernels.backends.triton.tiles import of_groups, of_places, tile


@triton.jit
def projections(
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
    Q = over_groups(k * be, exists, GROUPS) if KEEP else s * 0.0
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
    sample, first, group, exists, channel, used = program(PHASE, GROUPS, WIDTH, BUNDLE, LANES, CHUNK)
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
    pivot_c, mean_c, r, k, s = saved(statistics, group, exists, GROUPS, BUNDLE, LANES)

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
        tl.store(sum_row(sums, tl.program_id(2), 0, 2, channel, CHANNELS), sum_g, mask=used)
        tl.store(sum_row(sums, tl.program_id(2), 1, 2, channel, CHANNELS), sum_gc, mask=used)
    if PHASE == FOLD:
        sum_g = total(sums, 0, CHUNKS, 2, channel, used, CHANNELS)
        sum_gc = total(sums, 1, CHUNKS, 2, channel, used, CHANNELS)
    gains = tl.load(gain + channel, mask=used, other=0.0)  # not before, where registers are scarce
    if PHASE == WHOLE or PHASE == FOLD:
        mq, be, Q, constant, centred = projections(
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
