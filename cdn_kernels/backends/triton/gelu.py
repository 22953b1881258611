"""The passes of GELU."""

import triton
import triton.language as tl
from torch import Tensor

from cdn_kernels.backends import interface
from cdn_kernels.backends.triton.launch import computing_type, launch
from cdn_kernels.backends.triton.math import gelu as phi
from cdn_kernels.backends.triton.math import load, store

FORWARD, BACKWARD = tl.constexpr(interface.FORWARD), tl.constexpr(interface.BACKWARD)
BLOCK = 1024  # elements of a program: 16 bytes of bfloat16 for each of 128 threads


def gelu(
    sweep: int, u: Tensor, grad: Tensor | None, other: Tensor | None, out: Tensor, tangent_out: Tensor | None
) -> None:
    """Run a pass of GELU, see cdn_gelu in csrc/api.h; all tensors have the dtype and the memory layout of u."""
    size = u.numel()
    launch(
        _gelu,
        (triton.cdiv(size, BLOCK),),
        u,
        grad,
        other,
        out,
        tangent_out,
        size,
        SWEEP=sweep,
        BLOCK=BLOCK,
        REAL=computing_type(u),
    )


@triton.jit
def _gelu(u, grad, other, out, tangent_out, size, SWEEP: tl.constexpr, BLOCK: tl.constexpr, REAL: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    inside = i < size - start
    value, first, second = phi(load(u + start, i, inside, REAL))
    if SWEEP == FORWARD:
        store(out + start, i, value, inside)
    elif SWEEP == BACKWARD:
        result = first * load(grad + start, i, inside, REAL)
        if other is not None:
            result += load(other + start, i, inside, REAL)
        store(out + start, i, result, inside)
    else:
        tangent = load(other + start, i, inside, REAL)
        store(tangent_out + start, i, first * tangent, inside)
        store(out + start, i, second * (load(grad + start, i, inside, REAL) * tangent), inside)
