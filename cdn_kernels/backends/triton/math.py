"""What the kernels compute with: GELU and its derivatives, products of matrices, loading and storing.

GELU is that of csrc/gelu.h, with the same polynomial for the tail and the exponential of the hardware. Kernels are
compiled without fused multiply-adds but those written here, so that phi of a value is the same number wherever it is
computed: a group of equal values has a variance of exactly 0.
"""

import triton
import triton.language as tl

from cdn_kernels.backends.triton import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def gelu(u):
    """Return (phi, phi', phi'') of u, from one exponential: phi' = Phi + u pdf, phi'' = pdf (2 - u^2)."""
    # Beyond 16 the density is 0 in float32; squares stay finite. NaN stays NaN.
    a = tl.minimum(tl.abs(u), 16.0, propagate_nan=tl.PropagateNan.ALL) if u.dtype == tl.float32 else tl.abs(u)
    opposite = -a
    square = a * a
    if u.dtype == tl.float32:
        e = _bell(a, opposite, square)
        t = 3.75 / (3.75 + a)
        p = tl.fma(t, 0.030272865667939186, -0.1384868174791336)
        p = tl.fma(p, t, 0.20164258778095245)
        p = tl.fma(p, t, -0.10002262890338898)
        p = tl.fma(p, t, 0.12730096280574799)
        p = tl.fma(p, t, 0.06455504149198532)
        p = tl.fma(p, t, 0.10231086611747742)
        p = tl.fma(p, t, 0.10602681338787079)
        p = tl.fma(p, t, 0.10640031844377518)
        below = e * (t * p)
    else:
        e = tl.exp(-0.5 * square)
        below = 0.5 - 0.5 * tl.erf(a * 0.70710678118654752440)
    distribution = tl.where(u < 0, below, 1.0 - below)
    density = e * 0.39894228040143267794
    return u * distribution, distribution + tl.where(u < 0, opposite, a) * density, density * (2.0 - square)


@triton.jit
def _bell(a, opposite, square):
    """Return exp(-a^2/2) for 0 <= a <= 16 as a power of 2; what the exponent loses to rounding is put back."""
    half_log2_e = 0.72134752044448170
    exponent = square * half_log2_e
    lost = tl.fma(opposite, a, square) * half_log2_e + tl.fma(square, -half_log2_e, exponent)
    lost = tl.fma(square, -9.62981494545545e-09, lost)  # of half_log2_e as a float32
    e = tl.exp2(-exponent)
    return tl.fma(e, lost * 0.69314718055994531, e)


@triton.jit
def load(pointer, offsets, mask, real: tl.constexpr):
    """Load elements in the computing type, 0 where masked."""
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(real)


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """Round once, to nearest even; the interpreter would truncate bfloat16."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    return value.to(dtype)


@triton.jit
def store(pointer, offsets, value, mask):
    """Store a value of the computing type."""
    tl.store(pointer + offsets, rounded(value, pointer.dtype.element_ty), mask=mask)


@triton.jit
def product(a, b, sums, PRECISION: tl.constexpr):
    """Return sums + a b, of matrices; PRECISION is what tensor cores may make of float32: "ieee" or "tf32"."""
    if _INTERPRETED:  # which would multiply bfloat16 as integers
        a, b = a.to(sums.dtype), b.to(sums.dtype)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


def _bound(n: int | tl.tensor) -> int:
    """Return the bound of a loop; the interpreter's numbers are arrays of one, which Python does not count to."""
    return n.handle.data.item() if isinstance(n, tl.tensor) else n


@triton.jit
def _same(n):
    return n


bound = _bound if INTERPRETED else _same
