"""The three maps of a convolution: how they are cut into programs, and the launches."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdn_kernels.backends.interface import CONV_INPUT, CONV_WEIGHT, ConvolutionShape
from cdn_kernels.backends.triton import convolution_maps
from cdn_kernels.backends.triton.convolution_choice import too_large
from cdn_kernels.backends.triton.convolution_tiles import PROGRAMS, SHORTEST_PART, tile_for
from cdn_kernels.backends.triton.launch import computing_type, launch

BLOCK = 512  # elements of a program that adds up


def conv2d(
    kind: int,
    first: Tensor,
    second: Tensor,
    out: Tensor | None,
    shape: ConvolutionShape,
    stride: int,
    *,
    u: Tensor | None = None,
    added: Tensor | None = None,
    activation: Tensor | None = None,
    product: Tensor | None = None,
) -> None:
    """Run one of the three maps of a convolution with "same" padding, summed in float32 and rounded once.

    The maps to images end with ``out = phi'(u) product + added`` and ``activation = phi(out)``: after a forward map
    GELU, with or without a residual; in the gradient by the input, the backward pass of the GELU before the
    convolution, which may need the product itself.

    Args:
        kind: CONV_FORWARD of x by the filters, CONV_INPUT of the gradient by y by the filters, or CONV_WEIGHT of x by
            the gradient by y: first and second.
        out: the result; may be None beside an activation.
        shape: [B, I, H, W] of x and [O, I, k, k] of the filters, k odd, as a pair.
        stride: 1 or more.
        u, added, activation, product: None, or of the shape of the result; the first two are read, the others written.

    All tensors are channels last, of one dtype; float64 is summed in float64. Float32 is multiplied as it is, or in
    TF32 where ``torch.backends.cudnn.conv.fp32_precision`` says so, which decides for torch's convolutions too. Weight
    gradients of many pixels are summed in parts, and these in their order: the same input gives the same bits.

    Raises:
        ValueError: images, filters or a batch whose elements cannot be counted in 32 bits; see too_large.
    """
    reason = too_large(shape, stride)
    if reason:
        raise ValueError(f"the triton kernels take no convolution of {reason}")
    total, programs, constants = _plan(kind, first, shape, stride)
    if kind == CONV_WEIGHT:
        _by_parts(first, second, out, total, programs, constants)
    else:
        phases = stride**2 if kind == CONV_INPUT else 1
        launch(
            convolution_maps.to_images,
            (programs, phases),
            first,
            second,
            u,
            added,
            out,
            activation,
            product,
            total,
            BACK=kind == CONV_INPUT,
            **constants,
        )


def _plan(kind: int, x: Tensor, shape: ConvolutionShape, stride: int) -> tuple[int, int, dict[str, Any]]:
    """Return (pixels of y, programs that share them or each part of them, the constants of the kernels)."""
    (batch, inputs, height, width), (outputs, _, size, _) = shape
    rows, columns = -(-height // stride), -(-width // stride)
    total = batch * rows * columns
    result = (
        (outputs, size * size * inputs) if kind == CONV_WEIGHT else (total, inputs if kind == CONV_INPUT else outputs)
    )
    tile = tile_for(kind, x.element_size(), *result, inputs, outputs)
    programs = triton.cdiv(result[0], tile.rows) * triton.cdiv(result[1], tile.columns)
    return (
        total,
        programs,
        dict(
            HEIGHT=height,
            WIDTH=width,
            ROWS=rows,
            COLUMNS=columns,
            INPUTS=inputs,
            OUTPUTS=outputs,
            SIZE=size,
            STRIDE=stride,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            BLOCK_K=tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
            REAL=computing_type(x),
            PRECISION="tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee",
        ),
    )


def _by_parts(x: Tensor, grad: Tensor, out: Tensor, total: int, programs: int, constants: dict[str, Any]) -> None:
    """Write the gradient by the filters as a sum over parts of the pixels, as many as make enough programs."""
    parts = max(1, min(triton.cdiv(PROGRAMS, programs), total // SHORTEST_PART))
    length = triton.cdiv(triton.cdiv(total, parts), constants["BLOCK_K"]) * constants["BLOCK_K"]
    parts, size, real = triton.cdiv(total, length), out.numel(), constants["REAL"]
    if parts == 1:
        partial = out
    else:
        partial = x.new_empty(parts, size, dtype=torch.float64 if real == tl.float64 else torch.float32)
    launch(convolution_maps.to_filters, (programs, parts), x, grad, partial, total, length, **constants)
    if parts > 1:
        launch(convolution_maps.add_up, (triton.cdiv(size, BLOCK),), partial, out, parts, size, BLOCK=BLOCK, REAL=real)
