"""Noise, noise levels and the denoising residual, drawn from counters inside the kernels.

A program draws whole units of an image in C order, whatever its layout; channels last, it gathers. The offset of a key
is read from memory, a tensor int64 [] on the device, where a CUDA graph finds another one at every replay; so are the
places of images, if they do not follow one another.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdn_kernels.backends.triton.launch import check_sample, computing_type, launch
from cdn_kernels.backends.triton.math import load, store
from cdn_kernels.backends.triton.philox import normals, philox
from cdn_kernels.noise import LAWS

BLOCKS = 256  # of four normals: a unit
LONGEST = 16  # units of one program, where it sums
LOG_UNIFORM, UNIFORM = (tl.constexpr(LAWS.index(law)) for law in ("log-uniform", "uniform"))


def add_noise(
    x: Tensor | None,
    sigma: Tensor | None,
    y: Tensor,
    seed: int,
    offset: Tensor,
    channels: int = 0,
    first: int = 0,
    places: Tensor | None = None,
) -> None:
    """Write ``x + sigma eps`` into y; arguments as for the function of ../cpu.py."""
    units, size = _units(y)
    launch(
        _add_noise,
        (y.shape[0] * units,),
        y,
        x,
        sigma,
        seed,
        offset,
        first,
        places,
        size,
        units,
        CHANNELS=channels,
        BLOCKS=BLOCKS,
        REAL=computing_type(y),
    )


def sample_noise(
    x: Tensor,
    sigma: Tensor,
    y: Tensor,
    law: str,
    low: float,
    high: float,
    clean_share: float,
    clean: str,
    seed: int,
    offset: Tensor,
    channels: int = 0,
    first: int = 0,
    places: Tensor | None = None,
) -> None:
    """Draw noise levels into sigma and write ``x + sigma eps`` into y; arguments as for the function of ../cpu.py."""
    sample_sigma(sigma, law, low, high, clean_share, clean, seed, offset, first, places)
    add_noise(x, sigma, y, seed, offset, channels, first, places)


def sample_sigma(
    sigma: Tensor,
    law: str,
    low: float,
    high: float,
    clean_share: float,
    clean: str,
    seed: int,
    offset: Tensor,
    first: int = 0,
    places: Tensor | None = None,
) -> None:
    """Write noise levels drawn from a law into sigma [B], float32 or float64."""
    log_low = math.log(low) if law == "log-uniform" else 0.0
    log_range = math.log(high) - log_low if law == "log-uniform" else 0.0
    launch(
        _sample_sigma,
        (triton.cdiv(sigma.shape[0], 128),),
        sigma,
        low,
        high,
        log_low,
        log_range,
        clean_share * 2.0**32,
        round(clean_share * 2.0**32),
        seed,
        offset,
        first,
        places,
        sigma.shape[0],
        LAW=LAWS.index(law),
        STRATIFIED=clean == "stratified",
        BLOCK=128,
    )


def denoising(
    score: Tensor,
    sigma: Tensor,
    seed: int,
    offset: Tensor,
    channels: int = 0,
    first: int = 0,
    places: Tensor | None = None,
    *,
    errors: Tensor | None = None,
    factors: Tensor | None = None,
    gradient: Tensor | None = None,
) -> None:
    """Write the mean squares of the denoising residual, or factors times their gradients; see ../cpu.py."""
    units, size = _units(score)
    if errors is None:
        launch(
            _residual_gradient,
            (score.shape[0] * units,),
            score,
            sigma,
            factors,
            gradient,
            seed,
            offset,
            first,
            places,
            size,
            units,
            CHANNELS=channels,
            BLOCKS=BLOCKS,
            REAL=computing_type(score),
        )
        return
    length = min(units, LONGEST)
    parts = triton.cdiv(units, length)
    partial = errors if parts == 1 else errors.new_empty(score.shape[0], parts)
    launch(
        _residual_squares,
        (score.shape[0] * parts,),
        score,
        sigma,
        partial,
        seed,
        offset,
        first,
        places,
        size,
        parts,
        CHANNELS=channels,
        LENGTH=length,
        BLOCKS=BLOCKS,
        REAL=computing_type(score),
    )
    if parts > 1:
        torch.sum(partial, 1, out=errors)


def random_words(
    batch: int, blocks: int, seed: int, offset: Tensor, stream: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the integers behind the noise, int64 [batch, blocks, 4] with values in [0, 2**32)."""
    words = torch.empty(batch, blocks, 4, dtype=torch.int32, device=device)
    launch(
        _random_words,
        (batch * triton.cdiv(blocks, BLOCKS),),
        words,
        seed,
        offset,
        blocks,
        triton.cdiv(blocks, BLOCKS),
        STREAM=stream,
        BLOCKS=BLOCKS,
    )
    return words.long() & 0xFFFFFFFF


def _units(x: Tensor) -> tuple[int, int]:
    """Return (units of an image, its elements) of x [B, ...]."""
    size = x[0].numel() if x.shape[0] else 0
    check_sample(size)
    return triton.cdiv(size, 4 * BLOCKS), size


@triton.jit
def _place(image, first, places):
    """Return where an image stands in its batch, which is all that its noise knows of it, modulo 2^32."""
    if places is None:
        return image + first
    else:
        return tl.load(places + image)


@triton.jit
def _drawn(unit, place, seed, offset, size, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, REAL: tl.constexpr):
    """Return (normals, where they lie in memory, which of them exist) of a unit of the image at a place."""
    eps = normals(unit * BLOCKS + tl.arange(0, BLOCKS), place, seed, offset, REAL)
    element = unit * (4 * BLOCKS) + tl.arange(0, 4 * BLOCKS)
    where = element
    if CHANNELS > 1:
        pixels = size // CHANNELS
        where = element % pixels * CHANNELS + element // pixels
    return eps, where, element < size


@triton.jit(do_not_specialize=["seed", "offset", "first"])
def _add_noise(
    y,
    x,
    sigma,
    seed: "i64",
    offset,
    first: "i64",
    places,
    size,
    units,
    CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr,
    REAL: tl.constexpr,
):
    offset = tl.load(offset)
    image = tl.program_id(0) // units
    place = _place(image, first, places)
    value, where, exists = _drawn(tl.program_id(0) % units, place, seed, offset, size, CHANNELS, BLOCKS, REAL)
    start = image.to(tl.int64) * size
    if sigma is not None:
        value *= tl.load(sigma + image)
    if x is not None:
        value += load(x + start, where, exists, REAL)
    store(y + start, where, value, exists)


@triton.jit(do_not_specialize=["seed", "offset", "first", "share"])
def _sample_sigma(
    sigma,
    low: "fp64",
    high: "fp64",
    log_low: "fp64",
    log_range: "fp64",
    clean: "fp64",
    share: "i64",
    seed: "i64",
    offset,
    first: "i64",
    places,
    batch,
    LAW: tl.constexpr,
    STRATIFIED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw levels in double and round once, and clean images in integers, so that every backend draws the same."""
    offset = tl.load(offset)
    image = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if places is None:
        place = image + first
    else:
        place = tl.load(places + image, mask=image < batch, other=0)
    block = tl.zeros_like(image)
    drawn, choice, _, _ = philox(block, place, seed, offset, 1)
    position = (drawn.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    if LAW == LOG_UNIFORM:
        level = tl.exp(log_low + position * log_range)
    elif LAW == UNIFORM:
        level = low + position * (high - low)
    else:
        level = position * 0.0 + high
    if STRATIFIED:
        u, _, _, _ = philox(block + 1, block, seed, offset, 1)
        stays = ((place * share + u.to(tl.int64)) & 0xFFFFFFFF) + share >= 0x100000000
    else:
        stays = choice.to(tl.float64) < clean
    level = tl.where(stays, 0.0, level)
    tl.store(sigma + image, level.to(sigma.dtype.element_ty), mask=image < batch)


@triton.jit
def _residual(
    score,
    level,
    unit,
    image,
    seed,
    offset,
    first,
    places,
    size,
    CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr,
    REAL: tl.constexpr,
):
    """Return (sigma s + eps, where it lies in memory, which exist); images with sigma = 0 have none, NaN stays NaN."""
    eps, where, exists = _drawn(unit, _place(image, first, places), seed, offset, size, CHANNELS, BLOCKS, REAL)
    residual = level * load(score + image.to(tl.int64) * size, where, exists, REAL) + eps
    return tl.where(level > 0, residual, level * 0.0), where, exists


@triton.jit(do_not_specialize=["seed", "offset", "first"])
def _residual_squares(
    score,
    sigma,
    partial,
    seed: "i64",
    offset,
    first: "i64",
    places,
    size,
    parts,
    CHANNELS: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCKS: tl.constexpr,
    REAL: tl.constexpr,
):
    offset = tl.load(offset)
    image, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    level = tl.load(sigma + image)
    total = tl.zeros([4 * BLOCKS], REAL)
    for step in range(LENGTH):
        residual, _, exists = _residual(
            score, level, part * LENGTH + step, image, seed, offset, first, places, size, CHANNELS, BLOCKS, REAL
        )
        total += tl.where(exists, residual * residual, 0.0)
    tl.store(partial + tl.program_id(0), (tl.sum(total.to(tl.float64), 0) / size).to(REAL))


@triton.jit(do_not_specialize=["seed", "offset", "first"])
def _residual_gradient(
    score,
    sigma,
    factors,
    gradient,
    seed: "i64",
    offset,
    first: "i64",
    places,
    size,
    units,
    CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr,
    REAL: tl.constexpr,
):
    offset = tl.load(offset)
    image = tl.program_id(0) // units
    level = tl.load(sigma + image)
    unit = tl.program_id(0) % units
    residual, where, exists = _residual(
        score, level, unit, image, seed, offset, first, places, size, CHANNELS, BLOCKS, REAL
    )
    factor = tl.load(factors + image) * 2.0 * level / size
    store(gradient + image.to(tl.int64) * size, where, factor * residual, exists)


@triton.jit(do_not_specialize=["seed", "offset"])
def _random_words(words, seed: "i64", offset, blocks, units, STREAM: tl.constexpr, BLOCKS: tl.constexpr):
    offset = tl.load(offset)
    image = tl.program_id(0) // units
    block = tl.program_id(0) % units * BLOCKS + tl.arange(0, BLOCKS)
    w0, w1, w2, w3 = philox(block, image, seed, offset, STREAM)
    drawn = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    place = tl.program_id(0) % units * (4 * BLOCKS) + tl.arange(0, 4 * BLOCKS)
    tl.store(words + image.to(tl.int64) * blocks * 4 + place, drawn.to(tl.int32, bitcast=True), mask=place < 4 * blocks)
