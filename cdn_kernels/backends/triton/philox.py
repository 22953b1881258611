"""Philox4x32-10 and Box-Muller: the twin of csrc/philox.h and csrc/math.h, with the same integers.

In float32 the normals are the same too, bit for bit: every operation is a correctly rounded one, in the same order, and
kernels are compiled without fused multiply-adds.
"""

import triton
import triton.language as tl


@triton.jit
def philox(block, place, seed, offset, STREAM: tl.constexpr):
    """Return the four words of blocks of the image at a place; seed and offset are 64-bit integers, offset < 2^63."""
    seed, offset = seed.to(tl.int64), offset.to(tl.int64)
    k0, k1 = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = tl.zeros_like(c0) + place.to(tl.uint32)
    c2 = tl.zeros_like(c0) + (offset & 0xFFFFFFFF).to(tl.uint32)
    c3 = tl.zeros_like(c0) + ((offset >> 32).to(tl.uint32) | (STREAM << 31))
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def normals(block, place, seed, offset, REAL: tl.constexpr):
    """Return the normals of blocks [n] of the image at a place, [4 n] in order."""
    w0, w1, w2, w3 = philox(block, place, seed, offset, 0)
    n0, n1 = _box_muller(w0, w1, REAL)
    n2, n3 = _box_muller(w2, w3, REAL)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def _box_muller(distance, direction, REAL: tl.constexpr):
    """Return two standard normals from two words."""
    u = distance.to(REAL) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # (w + 1/2) / 2^32, in (0, 1]
    # The angle 2 pi w / 2^32 = quarter pi/2 + rest, |rest| <= pi/4, is split in integers: nothing is lost.
    turn = direction + 0x20000000
    quarter = (turn >> 30).to(tl.int32)
    rest = (turn & 0x3FFFFFFF).to(tl.int32) - 0x20000000
    angle = rest.to(REAL) * 1.4629180792671596e-09  # pi / 2^31
    radius = tl.sqrt(tl.log(u) * -2.0) if tl.float64 == REAL else tl.sqrt_rn(_log(u) * -2.0)
    sin, cos = _sincos(angle)
    swap = (quarter & 1) == 1
    sign_first = (1 - ((quarter + 1) & 2)).to(REAL)
    sign_second = (1 - (quarter & 2)).to(REAL)
    return radius * (tl.where(swap, sin, cos) * sign_first), radius * (tl.where(swap, cos, sin) * sign_second)


@triton.jit
def _log(u):
    """Return log u for normal u > 0 in float32; see csrc/math.h."""
    bits = u.to(tl.uint32, bitcast=True)
    exponent = (bits - 0x3F3504F3).to(tl.int32, bitcast=True) >> 23
    e = exponent.to(tl.float32)
    f = (bits - (exponent.to(tl.uint32, bitcast=True) << 23)).to(tl.float32, bitcast=True) - 1.0
    s = tl.div_rn(f, 2.0 + f)
    z = s * s
    r = z * (2.0 / 3 + z * (2.0 / 5 + z * (2.0 / 7 + z * (2.0 / 9))))
    return e * 0.693145751953125 + (f - (s * (f - r) - e * 1.428606765330187e-06))


@triton.jit
def _sincos(a):
    """Return (sin a, cos a) for |a| <= pi / 4 by their series; in float32 as csrc/math.h does."""
    z = a * a
    if a.dtype == tl.float64:
        sin = 1.0 / 6227020800 + z * (-1.0 / 1307674368000 + z * (1.0 / 355687428096000))
        sin = 1.0 / 362880 + z * (-1.0 / 39916800 + z * sin)
        higher = -1.0 / 87178291200 + z * (1.0 / 20922789888000 + z * (-1.0 / 6402373705728000))
        higher = -1.0 / 3628800 + z * (1.0 / 479001600 + z * higher)
    else:
        sin = 1.0 / 362880
        higher = -1.0 / 3628800
    sin = a + a * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * sin)))
    higher = 1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * higher))
    return sin, 1.0 - (0.5 * z - z * z * higher)
