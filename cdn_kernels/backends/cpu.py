"""Call the compiled CPU library through its C interface, csrc/api.h.

The functions trust their caller (the registered operations) with shapes, dtypes and layouts; the library
itself only refuses numbers that it has no code for.
"""

from collections.abc import Callable, Sequence
from ctypes import c_double, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdn_kernels.backends import openmp, shared_library
from cdn_kernels.backends.cpu_engines import ENGINES, Map, Processor, engine_for
from cdn_kernels.backends.interface import TYPES, ConvolutionShape, shares_of
from cdn_kernels.backends.shared_library import Library, Signatures, address, integer, observers
from cdn_kernels.noise import CLEAN_LAWS, LAWS

INTERFACE = 16  # CDN_INTERFACE of the csrc/api.h that this file was written for
CAPABILITIES = ("scalar", "avx2", "avx512", "avx512_bf16")

_LEVELS = c_int, c_double, c_double, c_double, c_int
_KEY = c_uint64, c_uint64, c_int64, c_void_p
_ACTIVATION = c_int, *[c_void_p] * 5, c_int, c_int64, c_int, c_int
_SIGNATURES: Signatures = {
    "cdn_interface": (),
    "cdn_capability": (),
    "cdn_conv_engine": (),
    "cdn_use_openmp": (c_void_p, c_void_p, c_void_p),
    "cdn_build": (),
    "cdn_features": (),
    "cdn_add_noise": (*[c_void_p] * 3, c_int, *[c_int64] * 3, *_KEY, c_int, c_int),
    "cdn_sample_noise": (*[c_void_p] * 3, c_int, *[c_int64] * 3, *_LEVELS, *_KEY, c_int, c_int),
    "cdn_sample_sigma": (c_void_p, c_int, c_int64, *_LEVELS, *_KEY),
    "cdn_denoising": (*[c_void_p] * 5, c_int, *[c_int64] * 3, *_KEY, c_int, c_int),
    "cdn_gelu": _ACTIVATION,
    "cdn_silu": _ACTIVATION,
    "cdn_elu": _ACTIVATION,
    "cdn_softmax_tangent": (*[c_void_p] * 5, c_int, c_int64, c_int64, c_int, c_int),
    "cdn_gelu_norm": (c_int, *[c_void_p] * 11, c_int, *[c_int64] * 5, c_double, *[c_int] * 4),
    "cdn_group_norm": (c_int, *[c_void_p] * 10, c_int, *[c_int64] * 5, c_double, c_int, c_int, c_int),
    "cdn_pool": (c_int, *[c_void_p] * 4, c_int, c_int64, c_int64, c_int64, c_int, c_int, c_int),
    "cdn_conv2d": (c_int, *[c_void_p] * 7, c_int, *[c_int64] * 8, c_int, c_int),
    "cdn_random_words": (c_void_p, c_int64, c_int64, c_int, c_uint64, c_uint64, c_int),
}


def load(path: Path) -> tuple[Library, str | None]:
    """Load the library.

    Returns:
        (library, None), or (None, the reason why there is none).
    """
    return shared_library.load(
        path,
        "the CPU library",
        ("cdn_interface", INTERFACE),
        _SIGNATURES,
        ("cdn_build", "cdn_features"),
        "reinstall with CDN_CPU=1 to see the compiler's error",
    )


# Loaded once, at import, in well under a millisecond: torch.compile takes it for a constant.
LIBRARY, MISSING = load(Path(__file__).parents[1] / "_cpu.so")
THREADS, _FUNCTIONS = (openmp.find() if LIBRARY else None) or (None, None)  # whose they are, None for the calling one
if _FUNCTIONS:
    LIBRARY.cdn_use_openmp(*_FUNCTIONS)
CAPABILITY = CAPABILITIES[LIBRARY.cdn_capability()] if LIBRARY else None
USABLE = CAPABILITIES[: CAPABILITIES.index(CAPABILITY) + 1] if LIBRARY else ()  # up to that which is in use
ENGINE = dict(enumerate(ENGINES)).get(LIBRARY.cdn_conv_engine()) if LIBRARY else None  # the fastest direct one
FEATURES = LIBRARY.cdn_features().decode().split() if LIBRARY else []  # of the processor, its maker among them


def can_use_cpu(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if this backend takes tensors of a device and dtype, or the reason why not."""
    if MISSING:
        return MISSING
    if device.type != "cpu":
        return f"the tensor must be on a CPU, got device {device}"
    if dtype not in TYPES:
        return f"the dtype must be float32, float64, bfloat16 or float16, got {dtype}"
    return None


def why_not_automatic() -> str | None:
    """Return None if impl="auto" should prefer this backend to torch where it can be used, or the reason why not."""
    if THREADS is None and torch.get_num_threads() > 1:
        return (
            "no OpenMP runtime was found, so the CPU library has one thread where torch has "
            f"{torch.get_num_threads()}; impl='cpu' uses it all the same"
        )
    return None


def add_noise(
    x: Tensor | None,
    sigma: Tensor | None,
    y: Tensor,
    seed: int,
    offset: int | Tensor,
    channels: int = 0,
    first: int = 0,
    places: Tensor | None = None,
    *,
    threads: int | None = None,
    capability: str | None = None,
) -> None:
    """Write ``x + sigma eps`` into y.

    Args:
        x: None for zero, or the dtype and memory layout of y.
        sigma: None for one, or [B] contiguous, in the computing dtype.
        y: [B, ...], contiguous, or channels last if channels (their number) is given.
        seed, offset: the key, as any integers modulo 2**64; offset may be a tensor that holds one.
        first, places: the place in the batch of the first image; or of every image, int64 [B] contiguous.
        threads: at most; as many as torch uses if None.
        capability: one of CAPABILITIES; the chosen one if None.
    """
    batch = y.shape[0]
    _call(
        LIBRARY.cdn_add_noise,
        *map(address, (x, sigma, y)),
        TYPES[y.dtype],
        batch,
        y.numel() // max(batch, 1),
        channels,
        seed,
        integer(offset),
        first,
        address(places),
        *_where(threads, capability),
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
    offset: int | Tensor,
    channels: int = 0,
    first: int = 0,
    places: Tensor | None = None,
) -> None:
    """Draw noise levels into sigma [B], in the computing dtype, and write ``x + sigma eps`` into y.

    Args:
        x, y, seed, offset, channels, first, places: as for :func:`add_noise`; x is not None.
        law, low, high, clean_share, clean: the fields of :class:`cdn_kernels.NoiseLevels`.
    """
    batch = y.shape[0]
    _call(
        LIBRARY.cdn_sample_noise,
        *map(address, (x, sigma, y)),
        TYPES[y.dtype],
        batch,
        y.numel() // max(batch, 1),
        channels,
        LAWS.index(law),
        low,
        high,
        clean_share,
        CLEAN_LAWS.index(clean),
        seed,
        integer(offset),
        first,
        address(places),
        torch.get_num_threads(),
        CAPABILITIES.index(CAPABILITY),
    )


def sample_sigma(
    sigma: Tensor,
    law: str,
    low: float,
    high: float,
    clean_share: float,
    clean: str,
    seed: int,
    offset: int | Tensor,
    first: int = 0,
    places: Tensor | None = None,
) -> None:
    """Write noise levels drawn from a law into sigma [B], float32 or float64."""
    _call(
        LIBRARY.cdn_sample_sigma,
        sigma.data_ptr(),
        TYPES[sigma.dtype],
        sigma.shape[0],
        LAWS.index(law),
        low,
        high,
        clean_share,
        CLEAN_LAWS.index(clean),
        seed,
        integer(offset),
        first,
        address(places),
    )


def denoising(
    score: Tensor,
    sigma: Tensor,
    seed: int,
    offset: int | Tensor,
    channels: int = 0,
    first: int = 0,
    places: Tensor | None = None,
    *,
    errors: Tensor | None = None,
    factors: Tensor | None = None,
    gradient: Tensor | None = None,
    threads: int | None = None,
    capability: str | None = None,
) -> None:
    """Write the mean squares of the denoising residual, or factors times their gradients, see cdn_denoising.

    Args:
        score, gradient: [B, ...] with at least one element per image, as x and y of :func:`add_noise`.
        sigma, errors, factors: [B] contiguous, in the computing dtype.
        seed, offset, channels, first, places, threads, capability: as for :func:`add_noise`.
    """
    batch = score.shape[0]
    _call(
        LIBRARY.cdn_denoising,
        *map(address, (score, sigma, factors, errors, gradient)),
        TYPES[score.dtype],
        batch,
        score.numel() // max(batch, 1) or 1,
        channels,
        seed,
        integer(offset),
        first,
        address(places),
        *_where(threads, capability),
    )


def _activation(name: str) -> Callable[..., None]:
    """Return a pass of an activation function, that function of the library; called as the kernels of GELU are."""

    def run(
        sweep: int,
        u: Tensor,
        grad: Tensor | None,
        other: Tensor | None,
        out: Tensor,
        tangent_out: Tensor | None,
        *,
        threads: int | None = None,
        capability: str | None = None,
    ) -> None:
        """Run a pass, see cdn_gelu in csrc/api.h; all tensors have the dtype and the memory layout of u."""
        pointers = map(address, (u, grad, other, out, tangent_out))
        _call(getattr(LIBRARY, name), sweep, *pointers, TYPES[u.dtype], u.numel(), *_where(threads, capability))

    return run


gelu, silu, elu = map(_activation, ("cdn_gelu", "cdn_silu", "cdn_elu"))


def softmax_tangent(
    p: Tensor,
    grad: Tensor,
    tangent: Tensor,
    out: Tensor,
    tangent_out: Tensor,
    *,
    threads: int | None = None,
    capability: str | None = None,
) -> None:
    """Run the second order of a softmax, see cdn_softmax_tangent in csrc/api.h.

    Args:
        p, grad, tangent, out, tangent_out: [..., N] of one dtype, contiguous, N > 0.
    """
    length = p.shape[-1]
    _call(
        LIBRARY.cdn_softmax_tangent,
        *map(address, (p, grad, tangent, out, tangent_out)),
        TYPES[p.dtype],
        p.numel() // length,
        length,
        *_where(threads, capability),
    )


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
    threads: int | None = None,
    capability: str | None = None,
) -> None:
    """Run a pass of residual + GELU + group normalization, see cdn_gelu_norm in csrc/api.h.

    Args:
        x: [B, C, H, W] with at least one pixel, contiguous or channels last, as all tensors of that shape.
        source: of all samples, or of the first ones only.
        gain, statistics, gain_grad: contiguous, in the computing dtype.
    """
    tensors = (x, residual, gain, grad, source, tangent, statistics, sum, out, tangent_out, gain_grad)
    flags = (scale_preserving, channels_last)
    batch, channels, height, width = x.shape
    sizes = (TYPES[x.dtype], _count(source), batch, channels, height * width, groups)
    _normalization(LIBRARY.cdn_gelu_norm, sweep, tensors, sizes, eps, flags, threads, capability)


def group_norm(
    sweep: int,
    x: Tensor,
    gain: Tensor,
    groups: int,
    eps: float,
    channels_last: bool,
    *,
    statistics: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    grad: Tensor | None = None,
    tangent: Tensor | None = None,
    tangent_out: Tensor | None = None,
    gain_grad: Tensor | None = None,
    bias_grad: Tensor | None = None,
    threads: int | None = None,
    capability: str | None = None,
) -> None:
    """Run a pass of group normalization, see cdn_group_norm in csrc/api.h; arguments as for :func:`gelu_norm`.

    Args:
        groups: NO_GROUPS for batch normalization, which has statistics [1, 4 C + 1] and one share.
        gain_grad, bias_grad: [shares, C], of as many shares as :func:`shares_of` tells.
    """
    tensors = (x, gain, bias, grad, tangent, statistics, out, tangent_out, gain_grad, bias_grad)
    batch, channels, height, width = x.shape
    sizes = (TYPES[x.dtype], batch, shares_of(batch, groups), channels, height * width, groups)
    _normalization(LIBRARY.cdn_group_norm, sweep, tensors, sizes, eps, (channels_last,), threads, capability)


def _normalization(
    function: Callable[..., int],
    sweep: int,
    tensors: tuple[Tensor | None, ...],
    sizes: tuple[int, ...],
    eps: float,
    flags: Sequence[bool],
    threads: int | None,
    capability: str | None,
) -> None:
    """Run a pass of a norm."""
    _call(function, sweep, *map(address, tensors), *sizes, eps, *flags, *_where(threads, capability))


def pool(
    kind: int,
    shape: Sequence[int],
    channels_last: bool,
    values: Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    out: Tensor | None = None,
    threads: int | None = None,
    capability: str | None = None,
) -> None:
    """Reduce images over pixels or whole samples, or undo it, see cdn_pool in csrc/api.h.

    Args:
        shape: [B, C, H, W] of a, b and out, which are contiguous or channels last; at least one pixel.
        values: [B] or [B, C], contiguous, in the computing dtype.
    """
    batch, channels, height, width = shape
    x = out if a is None else a
    assert x is not None  # every kind of pooling reads or writes images
    _call(
        LIBRARY.cdn_pool,
        kind,
        *map(address, (a, b, values, out)),
        TYPES[x.dtype],
        batch,
        channels,
        height * width,
        channels_last,
        *_where(threads, capability),
    )


def conv2d(
    kind: int,
    first: Tensor,
    second: Tensor,
    out: Tensor | None,
    shape: ConvolutionShape,
    stride: int,
    *,
    activation: Tensor | None = None,
    u: Tensor | None = None,
    added: Tensor | None = None,
    product: Tensor | None = None,
    threads: int | None = None,
    engine: str | None = None,
) -> None:
    """Run one of the three maps of a convolution, see cdn_conv2d in csrc/api.h.

    Args:
        first, second, out, activation, u, added, product: of one dtype that the engine takes, channels last. What is
            added may be that of the first images only.
        shape: [B, I, H, W] of the images and [O, I, k, k] of the filters, as a pair.
        engine: one of ENGINES; the fastest one for the shape if None.
    """
    (batch, inputs, height, width), (outputs, _, size, _) = shape
    if engine is None:
        follows = activation is not None or u is not None
        engine = engine_for(Map(kind, first.dtype, shape, stride, follows), _processor()) or ENGINE
    _call(
        LIBRARY.cdn_conv2d,
        kind,
        *map(address, (first, second, out, activation, u, added, product)),
        TYPES[first.dtype],
        _count(added),
        batch,
        height,
        width,
        inputs,
        outputs,
        size,
        stride,
        threads or torch.get_num_threads(),
        ENGINES.index(engine) if engine else -1,
    )


def conv2d_is_faster(kind: int, x: Tensor, shape: ConvolutionShape, stride: int, activation: bool) -> bool:
    """Tell whether conv2d was measured to be faster than torch's convolution (benchmarks/test_convolutions.py).

    Args:
        kind, shape, stride: as for :func:`conv2d`.
        x: any tensor of the dtype of the convolution.
        activation: whether GELU follows, or its derivative a gradient.
    """
    return engine_for(Map(kind, x.dtype, shape, stride, activation), _processor()) is not None


def _processor() -> Processor:
    return Processor(ENGINE, CAPABILITY, "intel" not in FEATURES)


def random_words(
    batch: int, blocks: int, seed: int, offset: int | Tensor, stream: int, capability: str | None = None
) -> Tensor:
    """Return the integers behind the noise, int64 [batch, blocks, 4] with values in [0, 2**32)."""
    words = torch.empty(batch, blocks, 4, dtype=torch.int32)
    _call(
        LIBRARY.cdn_random_words,
        words.data_ptr(),
        batch,
        blocks,
        stream,
        seed,
        integer(offset),
        CAPABILITIES.index(capability or CAPABILITY),
    )
    return words.long() & 0xFFFFFFFF


def _count(x: Tensor | None) -> int:
    return 0 if x is None else x.shape[0]


def _where(threads: int | None, capability: str | None) -> tuple[int, int]:
    """Return how many threads run a call, and the number of what instructions they take."""
    return threads or torch.get_num_threads(), CAPABILITIES.index(capability or CAPABILITY)


def _call(function: Callable[..., int], *arguments: Any) -> None:
    """Call a function of the library, and show the call to whoever records."""
    check(function(*arguments))
    if observers.calls:
        observers.calls(function, arguments)


def check(status: int) -> None:
    """Raise what the status of a function of the library says.

    Raises:
        MemoryError: there was none for its workspace.
        RuntimeError: it has no code for its arguments.
    """
    if status == 2:
        raise MemoryError("the CPU library found no memory for its workspace")
    if status:
        raise RuntimeError("the CPU library refused its arguments: an unknown dtype or capability")
