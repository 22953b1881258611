"""The passes of residual + GELU + group normalization: how samples are cut into programs, and the launches."""

from typing import Any

import triton
from torch import Tensor

from cdn_kernels.backends.interface import BACKWARD, FORWARD
from cdn_kernels.backends.triton import norm_backward, norm_forward, norm_sweeps, norm_tangent
from cdn_kernels.backends.triton.launch import check_sample, computing_type, launch, power_of_two
from cdn_kernels.backends.triton.tiles import shape_of_tiles
from cdn_kernels.floors import square_floor

BUNDLED = 64  # channels side by side, at least, where groups do not depend on each other: full sectors of memory
MOST_CHANNELS = 4096  # of a bundle
WHOLE = 1 << 18  # elements of a bundle, at most, for one program
CHUNK = 1 << 16  # and of a chunk of pixels, if it has more
# Of a multiprocessor. A program may take them all: left to itself, the compiler may keep to half, and spill the rest.
REGISTERS = 1 << 16


def gelu_norm(
    sweep: int,
    x: Tensor,
    gain: Tensor,
    groups: int,
    eps: float,
    scale_preserving: bool,
    channels_last: bool,
    *,
    statistics: Tensor,
    out: Tensor,
    residual: Tensor | None = None,
    grad: Tensor | None = None,
    source: Tensor | None = None,
    tangent: Tensor | None = None,
    sum: Tensor | None = None,
    tangent_out: Tensor | None = None,
    gain_grad: Tensor | None = None,
) -> None:
    """Run a pass of residual + GELU + group normalization, see cdn_gelu_norm in csrc/api.h.

    Args:
        x: [B, C, H, W] with at least one pixel, contiguous or channels last, as all tensors of that shape.
        gain, statistics, gain_grad: contiguous, in the computing dtype.

    Raises:
        ValueError: too many channels in a group (plain) or in all (scale-preserving), or a sample of 2**31 values.
    """
    batch, channels, height, width = x.shape
    check_sample(channels * height * width)
    bundles, constants = _plan(x, groups, eps, scale_preserving, channels_last)
    chunks = constants["CHUNKS"]

    def buffer(*shape: int) -> Tensor | None:
        return gain.new_empty(batch, *shape) if chunks > 1 else None

    if sweep == FORWARD:
        kernel = norm_forward.forward
        constants["FLOOR"] = square_floor(x.dtype)
        arguments = (x, residual, gain, statistics, x if residual is None else sum, out, buffer(chunks, 2, channels))
    elif sweep == BACKWARD:
        kernel = norm_backward.backward
        arguments = (x, grad, source, gain, statistics, out, gain_grad, buffer(chunks, 2, channels), buffer(2, groups))
    else:
        kernel = norm_tangent.tangent
        arguments = (
            x,
            grad,
            tangent,
            gain,
            statistics,
            out,
            tangent_out,
            gain_grad,
            buffer(chunks, 5, channels),
            buffer(8, groups),
        )
    phases = (
        ((norm_sweeps.WHOLE, 1),)
        if chunks == 1
        else ((norm_sweeps.SUM, chunks), (norm_sweeps.FOLD, 1), (norm_sweeps.WRITE, chunks))
    )
    for phase, parts in phases:
        launch(kernel, (batch, bundles, parts), *arguments, PHASE=phase.value, **constants)


def _plan(
    x: Tensor, groups: int, eps: float, scale_preserving: bool, channels_last: bool
) -> tuple[int, dict[str, Any]]:
    """Return how a pass is cut: (the number of bundles of groups, the constants of the kernels)."""
    _, channels, height, width = x.shape
    width_of_group, pixels = channels // groups, height * width
    lanes = power_of_two(width_of_group)
    all_groups = power_of_two(groups)
    bundle = all_groups if scale_preserving else min(all_groups, max(1, BUNDLED // lanes))
    places = bundle * lanes
    if places > MOST_CHANNELS:
        what = "channels" if scale_preserving else "channels of a group"
        raise ValueError(
            f"the triton kernels take at most {MOST_CHANNELS} {what}, counted with every group filled up "
            f"to a power of two; got {places}"
        )
    chunk = pixels if places * pixels <= WHOLE else max(1, CHUNK // places)
    rows, warps = shape_of_tiles(chunk, places, x)
    chunk = triton.cdiv(chunk, rows) * rows
    return triton.cdiv(groups, bundle), dict(
        num_warps=warps,
        maxnreg=min(255, REGISTERS // (32 * warps)),
        PIXELS=pixels,
        CHUNKS=triton.cdiv(pixels, chunk),
        GROUPS=groups,
        WIDTH=width_of_group,
        BUNDLE=bundle,
        LANES=lanes,
        ROWS=rows,
        CHUNK=chunk,
        LAST=channels_last,
        KEEP=scale_preserving,
        EPS=eps,
        REAL=computing_type(x),
    )
