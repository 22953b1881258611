"""Which engine runs a map of a convolution on a CPU: a direct one, minimal filtering, or torch's convolution.

The choice depends on the type and the shape, never on the number of threads, so that results do not. The environment
variable CDN_CPU_CONVOLUTIONS decides: "measured", the default, takes what was measured to be faster
(benchmarks/test_convolutions.py), "winograd" minimal filtering wherever it can run, also in float64, and "direct"
torch's, and the direct engine for bfloat16.

In float32, minimal filtering errs some three times as much as direct sums. An outlier, infinity and nan included,
touches all of its tile of 4x4 pixels, or of 8x8 in 16 bits.
"""

import math
import os
from typing import NamedTuple

import torch

from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT, ConvolutionShape
from cdn_kernels.torch_faults import strided_gradient_may_crash

# Direct ones, of which the first two are for tests, and those by minimal filtering, one for each capability.
ENGINES = (
    "portable",
    "amx_emulated",
    "avx512_bf16",
    "amx",
    "float32_scalar",
    "float32_avx2",
    "float32_avx512",
    "winograd_scalar",
    "winograd_avx2",
    "winograd_avx512",
    "winograd_avx512_bf16",
)
LARGEST_FILTER = 7
CHOICES = ("measured", "direct", "winograd")
CHOICE = os.environ.get("CDN_CPU_CONVOLUTIONS", "measured")
if CHOICE not in CHOICES:
    raise ValueError(f"the environment variable CDN_CPU_CONVOLUTIONS must be one of {', '.join(CHOICES)}, got {CHOICE}")
_WITH_AVX512 = ("avx512", "avx512_bf16")
_FORMS = (3, 1), (3, 2), (5, 2)  # the sides of filters, and the strides, that minimal filtering takes
_TILE = 4  # side of the results that minimal filtering computes together


class Processor(NamedTuple):
    """What this processor runs.

    Attributes:
        direct: its direct engine for bfloat16, None if it has none that is fast.
        capability: one of cpu.CAPABILITIES, None without a library.
        doubles_bfloat16: whether its products of bfloat16 take half of the time of those of float32, as AMD's do;
            Intel's without AMX were measured to take as long.
    """

    direct: str | None
    capability: str | None
    doubles_bfloat16: bool


class Map(NamedTuple):
    """One of the three maps of a convolution.

    Attributes:
        kind: CONV_FORWARD, CONV_INPUT or CONV_WEIGHT.
        dtype: of images and filters.
        shape: [B, I, H, W] of the images and [O, I, k, k] of the filters, as a pair.
        stride: 1 or more.
        activation: whether GELU follows, or its derivative a gradient by the input.
    """

    kind: int
    dtype: torch.dtype
    shape: ConvolutionShape
    stride: int
    activation: bool


def engine_for(job: Map, processor: Processor) -> str | None:
    """Return the engine that runs a map of a convolution, or None where torch's is faster."""
    rival = _direct_engine(job, processor)
    return f"winograd_{processor.capability}" if _filters_minimally(job, processor, rival) else rival


def _filters_minimally(job: Map, processor: Processor, rival: str | None) -> bool:
    """Tell whether minimal filtering runs a map rather than its rival, a direct engine, or torch if None."""
    kind, dtype, shape, stride, _ = job
    direct, capability, _ = processor
    (batch, inputs, *sides), (outputs, _, size, _) = shape
    if CHOICE == "direct" or capability is None or (size, stride) not in _FORMS:
        return False
    if CHOICE == "winograd":
        return True
    if capability == "scalar" or dtype == torch.float64:
        return False
    inner, outer = (outputs, inputs) if kind == CONV_INPUT else (inputs, outputs)
    height, width = (-(-side // stride) for side in sides)  # of the results
    pixels = batch * height * width
    tiled = batch * -(-height // _TILE) * -(-width // _TILE) * _TILE**2
    if dtype == torch.bfloat16 and direct == "amx":
        # Of few pixels, its sums of all filters weigh more than its products.
        few = kind == CONV_WEIGHT and stride == 1 and pixels <= 256
        return few and inner >= 32 and outer >= 16 and pixels >= 0.65 * tiled
    if stride == 2:
        # Of 3x3 filters, its products are 0.56 of direct ones, while those of bfloat16 may take half of the time. Of
        # 5x5 they are 0.3, so that gradients by images of few channels gain, too, which leave vectors half empty.
        slower = dtype == torch.bfloat16 and direct is not None and processor.doubles_bfloat16
        wide = outer >= 16 or (size == 5 and kind == CONV_INPUT)
        return not slower and inner >= 16 and wide and pixels >= 256 and pixels >= 0.65 * tiled
    if dtype == torch.bfloat16 and rival is not None:
        fewest = 32 if kind == CONV_WEIGHT else 16
        return inner >= fewest and outer >= 16 and pixels >= 256 and pixels >= 0.65 * tiled
    if min(height, width) == 1 or pixels < 64:
        return False
    # torch's takes long to begin, so that small images gain with few channels, which leave vectors half empty.
    return inner >= 16 or (rival is None and pixels <= 1024)


def worth_copying(dtype: torch.dtype, shape: ConvolutionShape, stride: int) -> bool:
    """Tell whether minimal filtering was measured to be faster also where it has to copy images to channels last.

    Direct engines were not, and gain too little on large images.

    Args:
        dtype, shape, stride: as for :class:`Map`.
    """
    (batch, inputs, height, width), (outputs, _, size, _) = shape
    if CHOICE == "direct" or (size, stride) not in _FORMS:
        return False
    if CHOICE == "winograd":
        return True
    if dtype != torch.float32 or (size, stride) == (3, 2):
        return False
    height, width = height // stride, width // stride
    enough = min(inputs, outputs) >= (32 if stride == 1 else 16)
    return enough and min(height, width) >= 4 and batch * height * width >= 256


def _direct_engine(job: Map, processor: Processor) -> str | None:
    """Return the direct engine that was measured to be faster than torch's convolution, None if there is none."""
    kind, dtype, shape, stride, activation = job
    direct, capability, _ = processor
    _, (*_, size) = shape
    # A direct engine has no epilogue for a gradient.
    if (kind == CONV_INPUT and activation) or size > LARGEST_FILTER:
        return None
    if dtype == torch.bfloat16 and direct is not None:
        faster = _tiles_are_faster if direct == "amx" else _bfloat16_is_faster
        return direct if faster(kind, shape, stride, activation) else None
    if dtype == torch.float32 and capability in _WITH_AVX512 and CHOICE == "measured":
        return "float32_avx512" if _float32_is_faster(kind, shape, stride) else None
    return None


def _bfloat16_is_faster(kind: int, shape: ConvolutionShape, stride: int, activation: bool) -> bool:
    (_, inputs, _, _), (outputs, _, size, _) = shape
    return {
        CONV_FORWARD: activation or stride > 1 or outputs % 32 == 0,
        CONV_INPUT: (stride > 1 and inputs > 16) or inputs % 32 == 0,
        CONV_WEIGHT: inputs > 16 if size > 1 else strided_gradient_may_crash(shape, stride),
    }[kind]


def _tiles_are_faster(kind: int, shape: ConvolutionShape, stride: int, activation: bool) -> bool:
    """Tell where AMX tiles are faster: of few pixels, as torch's take long to begin, or where channels fill them."""
    (batch, inputs, height, width), (outputs, _, size, _) = shape
    out_width = -(-width // stride)
    pixels = batch * -(-height // stride) * out_width  # of the results
    few = pixels <= 2048
    if kind == CONV_WEIGHT:
        if strided_gradient_may_crash(shape, stride):
            return True
        # Sums run over 32 samples, or over fewer at neighbouring places of a row, as many as a power of two divides it.
        summed = min(batch, 32) * (math.gcd(out_width, 16) if stride == 1 else 1)
        return (inputs >= 8 or few) and (summed >= 16 or (summed >= 8 and pixels <= 512))
    if kind == CONV_FORWARD:
        return activation or few or (size > 1 and inputs >= 32 and (stride > 1 or outputs % 32 == 0))
    copied = size > 1 or stride > 1  # what a copy is worth: it takes longer than the products of a pixel
    return few or (copied and outputs >= 32 and (inputs % 32 == 0 or (stride > 1 and inputs > 16)))


def _float32_is_faster(kind: int, shape: ConvolutionShape, stride: int) -> bool:
    """Small convolutions gain most; of larger ones, those with a stride, and gradients by filters of many inputs."""
    (batch, inputs, height, width), (_, _, size, _) = shape
    pixels = batch * -(-height // stride) * -(-width // stride)  # of the results
    strided = stride > 1 and size > 1
    return {
        CONV_FORWARD: pixels >= 16 and (strided or pixels <= 1024),
        CONV_INPUT: stride > 1 or 16 <= pixels <= 256,
        CONV_WEIGHT: pixels >= 16 and ((strided and inputs >= 32) or (inputs >= 8 and pixels <= 256)),
    }[kind]


def describe(direct: str | None, capability: str | None) -> str:
    """Say in words which convolutions run on this CPU."""
    named = {
        None: "those of torch",
        "avx512_bf16": "bfloat16 on AVX-512 BF16 (no AMX, or Linux does not permit it), else those of torch",
        "amx": "bfloat16 on AMX, else those of torch",
    }[direct]
    forms = "3x3 with stride 1 or 2 and 5x5 with stride 2"
    if CHOICE == "direct":
        return f"{named}, as CDN_CPU_CONVOLUTIONS says"
    if CHOICE == "winograd":
        return f"{forms} by minimal filtering, as CDN_CPU_CONVOLUTIONS says, others: {named}"
    if capability == "scalar":
        return f"{named}; our own need AVX2"
    strided = ", and some of float32 directly" if capability in _WITH_AVX512 else ""
    types = "float32, bfloat16 and float16"
    if direct == "amx":
        types = "float32, float16 and gradients of bfloat16 by filters of few pixels"
    return f"{forms} in {types} by minimal filtering where that is faster{strided}, others: {named}"
