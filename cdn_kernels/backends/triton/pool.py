"""Reductions over the pixels or over all values of a sample, and their adjoints.

Threads sum in the computing type, few values each, and their sums are added in float64.
"""

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdn_kernels.backends.interface import DOT, MEAN, SCALE
from cdn_kernels.backends.triton.launch import check_sample, computing_type, launch, power_of_two
from cdn_kernels.backends.triton.math import load, store
from cdn_kernels.backends.triton.tiles import places, shape_of_tiles, tile

BLOCK = 1024  # values of a step of a flat program
LARGEST = 1 << 16  # values of a program; where it sums, larger samples are cut
COLUMNS = 64  # channels side by side


def pool(
    kind: int,
    shape: Sequence[int],
    channels_last: bool,
    values: Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    out: Tensor | None = None,
) -> None:
    """Reduce images over pixels or whole samples, or undo it, see cdn_pool in csrc/api.h; arguments as in ../cpu.py."""
    batch, channels, height, width = shape
    size, pixels = channels * height * width, height * width
    check_sample(size)
    x = out if a is None else a
    real = computing_type(x)
    if kind == SCALE:
        blocks = triton.cdiv(size, BLOCK)
        launch(_scale, (batch * blocks,), a, values, out, size, pixels, blocks, BLOCK=BLOCK, REAL=real)
    elif kind == DOT:
        length = min(LARGEST, triton.cdiv(size, BLOCK) * BLOCK)
        _sum(
            values,
            triton.cdiv(size, length),
            lambda partial, parts: launch(
                _dot, (batch * parts,), a, b, partial, size, pixels, parts, LENGTH=length, BLOCK=BLOCK, REAL=real
            ),
        )
    else:
        columns = min(COLUMNS, power_of_two(channels))
        length = min(pixels, LARGEST // columns)
        rows, warps = shape_of_tiles(length, columns, x)
        length = triton.cdiv(length, rows) * rows
        parts, bundles = triton.cdiv(pixels, length), triton.cdiv(channels, columns)
        constants = dict(
            num_warps=warps,
            PIXELS=pixels,
            CHANNELS=channels,
            COLUMNS=columns,
            ROWS=rows,
            LENGTH=length,
            LAST=channels_last,
            REAL=real,
        )
        if kind == MEAN:
            _sum(
                values,
                parts,
                lambda partial, parts: launch(_mean, (batch, bundles, parts), a, partial, parts, **constants),
            )
        else:
            launch(_spread, (batch, bundles, parts), values, out, **constants)


def _sum(values: Tensor, parts: int, run: Callable[[Tensor, int], None]) -> None:
    """Let programs write partial sums of values [B, ...], and add those up if there are several."""
    if parts == 1:
        run(values, 1)
    else:
        partial = values.new_empty(values.shape[0], parts, *values.shape[1:])
        run(partial, parts)
        torch.sum(partial, 1, out=values)


@triton.jit
def _dot(a, b, partial, size, pixels, parts, LENGTH: tl.constexpr, BLOCK: tl.constexpr, REAL: tl.constexpr):
    sample, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    start = sample.to(tl.int64) * size
    total = tl.zeros([BLOCK], REAL)
    for step in range(0, LENGTH, BLOCK):
        i = part * LENGTH + step + tl.arange(0, BLOCK)
        total += load(a + start, i, i < size, REAL) * load(b + start, i, i < size, REAL)
    tl.store(partial + tl.program_id(0), (tl.sum(total.to(tl.float64), 0) / pixels).to(REAL))


@triton.jit
def _scale(a, values, out, size, pixels, blocks, BLOCK: tl.constexpr, REAL: tl.constexpr):
    sample = tl.program_id(0) // blocks
    start = sample.to(tl.int64) * size
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(values + sample) / pixels
    store(out + start, i, load(a + start, i, i < size, REAL) * factor, i < size)


@triton.jit
def _mean(
    a,
    partial,
    parts,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    LENGTH: tl.constexpr,
    LAST: tl.constexpr,
    REAL: tl.constexpr,
):
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    channel, used = places(tl.program_id(1), CHANNELS, 1, COLUMNS, 1)
    a += sample * (PIXELS * CHANNELS)
    total = tl.zeros([ROWS, COLUMNS], REAL)
    for step in range(0, LENGTH, ROWS):
        offsets, inside = tile(part * LENGTH + step, channel, used, PIXELS, CHANNELS, LAST, ROWS)
        total += load(a, offsets, inside, REAL)
    mean = (tl.sum(total.to(tl.float64), 0) / PIXELS).to(REAL)
    tl.store(partial + (sample * parts + part) * CHANNELS + channel, mean, mask=used)


@triton.jit
def _spread(
    values,
    out,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    LENGTH: tl.constexpr,
    LAST: tl.constexpr,
    REAL: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    channel, used = places(tl.program_id(1), CHANNELS, 1, COLUMNS, 1)
    out += sample * (PIXELS * CHANNELS)
    row = tl.load(values + sample * CHANNELS + channel, mask=used, other=0.0) / PIXELS
    for step in range(0, LENGTH, ROWS):
        offsets, inside = tile(tl.program_id(2) * LENGTH + step, channel, used, PIXELS, CHANNELS, LAST, ROWS)
        store(out, offsets, tl.broadcast_to(row[None, :], [ROWS, COLUMNS]), inside)
