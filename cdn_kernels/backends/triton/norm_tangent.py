"""The tangent sweep of residual + GELU + group normalization."""

import triton
import triton.language as tl

from cdn_kernels.backends.triton.math import gelu, load, store
from cdn_kernels.backends.triton.norm_backward import projections
from cdn_kernels.backends.triton.norm_sweeps import FOLD, SUM, WHOLE, WRITE, over_groups, program, saved, sum_row, total
from cdn_kernels.backends.triton.tiles import of_groups, of_places, tile


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
        C = over_groups(al / alive_r, exists, GROUPS)
        W = s * (R - 3 * al * be) + 3 * k * be * C / (alive_r * alive_s)
        D = -EPS / 2 * over_groups(r * r * r * W, exists, GROUPS) + (
            over_groups(r * (R - al * be), exists, GROUPS) - Q * C / (alive_s * alive_s)
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
    sample, first, group, exists, channel, used = program(PHASE, GROUPS, WIDTH, BUNDLE, LANES, CHUNK)
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
    pivot_c, mean_c, r, k, s = saved(statistics, group, exists, GROUPS, BUNDLE, LANES)

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
        tl.store(sum_row(sums, chunk, 0, 5, channel, CHANNELS), sum_g, mask=used)
        tl.store(sum_row(sums, chunk, 1, 5, channel, CHANNELS), sum_gc, mask=used)
        tl.store(sum_row(sums, chunk, 2, 5, channel, CHANNELS), sum_b, mask=used)
        tl.store(sum_row(sums, chunk, 3, 5, channel, CHANNELS), sum_bc, mask=used)
        tl.store(sum_row(sums, chunk, 4, 5, channel, CHANNELS), sum_gb, mask=used)
    if PHASE == FOLD:
        sum_g = total(sums, 0, CHUNKS, 5, channel, used, CHANNELS)
        sum_gc = total(sums, 1, CHUNKS, 5, channel, used, CHANNELS)
        sum_b = total(sums, 2, CHUNKS, 5, channel, used, CHANNELS)
        sum_bc = total(sums, 3, CHUNKS, 5, channel, used, CHANNELS)
        sum_gb = total(sums, 4, CHUNKS, 5, channel, used, CHANNELS)
    gains = tl.load(gain + channel, mask=used, other=0.0)  # not before, where registers are scarce
    if PHASE == WHOLE or PHASE == FOLD:
        count = WIDTH * PIXELS
        mq, be, Q, g_0, g_c = projections(gains, sum_g, sum_gc, r, k, s, count, exists, GROUPS, BUNDLE, LANES, KEEP)
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
