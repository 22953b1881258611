"""Call the CUDA library, kernels in CUDA C++ for NVIDIA GPUs, through its C interface, csrc/cuda/api.h.

The functions take the arguments of those of cpu.py; kernels run in torch's current stream, and nothing waits for them.
The functions trust their caller (the registered operations) with shapes and dtypes. Limitations: images of the norm
must be channels last; a sample has less than 2**30 values; of convolutions there is that of a first stage, 3x3 with 64
channels; impl="auto" chooses it where it was measured to be faster (measured.py), so far nowhere.
"""

import re
from collections.abc import Sequence
from ctypes import c_double, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdn_kernels.backends import shared_library
from cdn_kernels.backends.convolution_choice import own_runs
from cdn_kernels.backends.driver import why_no_gpu
from cdn_kernels.backends.interface import TYPES, ConvolutionShape
from cdn_kernels.backends.shared_library import Library, Signatures, address
from cdn_kernels.noise import CLEAN_LAWS, LAWS

INTERFACE = 3  # CDN_CUDA_INTERFACE of the csrc/cuda/api.h that this file was written for
LEAST_CAPABILITY = 80  # Ampere: bfloat16 arithmetic, asynchronous copies

_KEY = c_uint64, c_void_p, c_int64, c_void_p
_SIGNATURES: Signatures = {
    "cdn_cuda_interface": (),
    "cdn_cuda_build": (),
    "cdn_cuda_toolkit": (),
    "cdn_cuda_driver": (),
    "cdn_cuda_error": (c_int,),
    "cdn_cuda_gelu_norm": (
        c_int,
        *[c_void_p] * 11,
        c_int,
        c_int64,
        c_int64,
        c_int64,
        c_int64,
        c_double,
        c_int,
        c_void_p,
        c_void_p,
    ),
    "cdn_cuda_gelu_norm_workspace": (c_int, c_int, c_int64, c_int64, c_int64, c_int64, c_int),
    "cdn_cuda_gelu": (c_int, *[c_void_p] * 5, c_int, c_int64, c_void_p),
    "cdn_cuda_pool": (c_int, *[c_void_p] * 4, c_int, c_int64, c_int64, c_int64, c_int, c_void_p, c_void_p),
    "cdn_cuda_pool_workspace": (c_int, c_int, c_int64, c_int64, c_int64, c_int),
    "cdn_cuda_add_noise": (*[c_void_p] * 3, c_int, *[c_int64] * 3, *_KEY, c_void_p),
    "cdn_cuda_sample_sigma": (c_void_p, c_int, c_int64, c_int, *[c_double] * 3, c_int, *_KEY, c_void_p),
    "cdn_cuda_random_words": (c_void_p, c_int64, c_int64, c_int, c_uint64, c_void_p, c_void_p),
    "cdn_cuda_denoising": (*[c_void_p] * 5, c_int, *[c_int64] * 3, *_KEY, c_void_p, c_void_p),
    "cdn_cuda_denoising_workspace": (c_int64, c_int64),
    "cdn_cuda_conv2d": (c_int, *[c_void_p] * 7, c_int, *[c_int64] * 7, c_void_p),
    "cdn_cuda_conv2d_refuses": (c_int, c_int, *[c_int64] * 7),
}


def load(path: Path) -> tuple[Library, str | None]:
    """Load the library, which needs neither a GPU nor a driver for that.

    Returns:
        (library, None), or (None, the reason why there is none).
    """
    library, missing = shared_library.load(
        path,
        "the CUDA library",
        ("cdn_cuda_interface", INTERFACE),
        _SIGNATURES,
        ("cdn_cuda_build", "cdn_cuda_error"),
        "reinstall with CDN_CUDA=1 where nvcc is, to see the compiler's error",
    )
    if library:
        for name in ("gelu_norm", "pool", "denoising"):
            getattr(library, f"cdn_cuda_{name}_workspace").restype = c_int64
    return library, missing


LIBRARY, MISSING = load(Path(__file__).parents[1] / "_cuda.so")


def can_use_cuda(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if this backend takes tensors of a device and dtype, or the reason why not."""
    if MISSING:
        return MISSING
    if dtype not in TYPES:
        return f"the dtype must be float32, float64, bfloat16 or float16, got {dtype}"
    if device.type != "cuda":
        return f"the tensor must be on a CUDA device, got device {device}"
    if torch.version.hip:
        return "it was written for NVIDIA GPUs, and this torch is for those of AMD"
    if not torch.cuda.is_available():
        return why_no_gpu()
    properties = torch.cuda.get_device_properties(device)
    return why_not_on(
        10 * properties.major + properties.minor,
        properties.name,
        LIBRARY.cdn_cuda_driver(),
        LIBRARY.cdn_cuda_toolkit(),
        built_for(LIBRARY.cdn_cuda_build().decode()),
    )


def built_for(build: str) -> tuple[set[int], set[int]]:
    """Return the architectures in the words of cdn_cuda_build: (those with machine code, those the driver compiles).

    Machine code for sm_90a counts as that for sm_90, the only GPUs of their major version.
    """
    names = build.partition(":")[2]
    architectures = lambda kind: {int(digits) for digits in re.findall(rf"\b{kind}_(\d+)", names)}
    return architectures("sm"), architectures("compute")


def why_not_on(
    capability: int, name: str, driver: int, toolkit: int, architectures: tuple[set[int], set[int]]
) -> str | None:
    """Return None if a library runs on a GPU, or the reason why not.

    Args:
        capability: of the GPU, 90 for 9.0.
        name: of the GPU.
        driver, toolkit: the latest CUDA that the driver supports and that of the library, 13000 for 13.0.
        architectures: as :func:`built_for` returns them.
    """
    dotted = lambda n: f"{n // 10}.{n % 10}"
    version = lambda n: f"{n // 1000}.{n % 1000 // 10}"
    if capability < LEAST_CAPABILITY:
        return (
            f"the GPU must have compute capability {dotted(LEAST_CAPABILITY)} or higher, got {dotted(capability)} "
            f"({name})"
        )
    # Within a major version of CUDA drivers run what newer toolkits compiled, but compile for themselves what is older.
    if driver // 1000 < toolkit // 1000:
        return (
            f"the driver supports CUDA {version(driver)}, and the library was built with CUDA {version(toolkit)}; "
            "install a newer driver, or reinstall with an older nvcc"
        )
    machine_code, portable = architectures
    if any(a // 10 == capability // 10 and a <= capability for a in machine_code):
        return None
    if all(a > capability for a in portable):
        listed = ", ".join(map(dotted, sorted(machine_code | portable)))
        return (
            f"the library was built for compute capability {listed}, and the GPU has {dotted(capability)} "
            f"({name}); reinstall with CDN_CUDA_ARCHITECTURES={capability}"
        )
    if driver < toolkit:
        return (
            f"the GPU ({name}) needs code that the driver compiles, and the driver supports CUDA "
            f"{version(driver)}, older than the library's {version(toolkit)}; reinstall with "
            f"CDN_CUDA_ARCHITECTURES={capability}"
        )
    return None


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
    """Write ``x + sigma eps`` into y; arguments as for the function of cpu.py, the offset on the device."""
    batch = y.shape[0]
    _run(
        "cdn_cuda_add_noise",
        y,
        *map(address, (x, sigma, y)),
        TYPES[y.dtype],
        batch,
        y.numel() // max(batch, 1),
        channels,
        seed,
        address(offset),
        first,
        address(places),
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
    """Draw noise levels into sigma and write ``x + sigma eps`` into y; arguments as for the function of cpu.py."""
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
    _run(
        "cdn_cuda_sample_sigma",
        sigma,
        address(sigma),
        TYPES[sigma.dtype],
        sigma.shape[0],
        LAWS.index(law),
        low,
        high,
        clean_share,
        CLEAN_LAWS.index(clean),
        seed,
        address(offset),
        first,
        address(places),
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
    """Write the mean squares of the denoising residual, or factors times their gradients; see cpu.py."""
    batch = score.shape[0]
    size = score.numel() // max(batch, 1) or 1
    workspace = None if errors is None else _workspace(score, LIBRARY.cdn_cuda_denoising_workspace(batch, size))
    _run(
        "cdn_cuda_denoising",
        score,
        *map(address, (score, sigma, factors, errors, gradient)),
        TYPES[score.dtype],
        batch,
        size,
        channels,
        seed,
        address(offset),
        first,
        address(places),
        address(workspace),
    )


def gelu(
    sweep: int, u: Tensor, grad: Tensor | None, other: Tensor | None, out: Tensor, tangent_out: Tensor | None
) -> None:
    """Run a pass of GELU, see cdn_gelu in csrc/api.h; all tensors have the dtype and the memory layout of u."""
    _run("cdn_cuda_gelu", u, sweep, *map(address, (u, grad, other, out, tangent_out)), TYPES[u.dtype], u.numel())


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
        x: [B, C, H, W] with at least one pixel, channels last, as all tensors of that shape.
        gain, statistics, gain_grad: contiguous, in the computing dtype.

    Raises:
        ValueError: images that are not channels last, or too large for the kernels.
    """
    batch, channels, height, width = x.shape
    pixels = height * width
    if not channels_last and x.numel() > max(batch * channels, batch * pixels):
        raise ValueError(
            "impl='cuda' takes images that are channels last, got contiguous ones; convert them with "
            "x.to(memory_format=torch.channels_last)"
        )
    shape = batch, channels, pixels, groups
    workspace = _workspace(x, LIBRARY.cdn_cuda_gelu_norm_workspace(sweep, TYPES[x.dtype], *shape, scale_preserving))
    pointers = (x, residual, gain, grad, source, tangent, statistics, sum, out, tangent_out, gain_grad)
    _run(
        "cdn_cuda_gelu_norm",
        x,
        sweep,
        *map(address, pointers),
        TYPES[x.dtype],
        *shape,
        eps,
        scale_preserving,
        address(workspace),
    )


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
    """Run a map of a convolution, and what follows it, see cdn_cuda_conv2d in csrc/cuda/api.h.

    Args:
        kind: CONV_FORWARD of x by the filters, or CONV_INPUT of the gradient by y by the filters: first and second.
        out: the result, ``phi'(u) product + added``; may be None beside an activation.
        shape: [B, I, H, W] of x and [O, I, k, k] of the filters, as a pair.
        stride: 1 or more.
        u, added, activation, product: None, or of the shape of the result; the first two are read, the activation
            becomes ``phi(out)``.

    All tensors are channels last, of one dtype.

    Raises:
        ValueError: a convolution that the kernel does not take.
    """
    (batch, inputs, height, width), (outputs, _, size, _) = shape
    tensors = *map(_aligned, (first, second, u, added)), out, activation, product
    _run(
        "cdn_cuda_conv2d",
        first,
        kind,
        *map(address, tensors),
        TYPES[first.dtype],
        batch,
        height,
        width,
        inputs,
        outputs,
        size,
        stride,
    )


def conv2d_is_faster(kind: int, x: Tensor, shape: ConvolutionShape, stride: int, activation: bool) -> bool:
    """Tell whether our own kernel runs a map of a convolution; arguments as for :func:`own_runs`."""
    if not own_runs("cuda", kind, x, shape, stride, activation):
        return False
    (batch, inputs, height, width), (outputs, _, size, _) = shape
    with torch.cuda.device_of(x):
        return not LIBRARY.cdn_cuda_conv2d_refuses(
            kind, TYPES[x.dtype], batch, height, width, inputs, outputs, size, stride
        )


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
    """Reduce images over pixels or whole samples, or undo it, see cdn_pool in csrc/api.h; arguments as in cpu.py.

    Raises:
        ValueError: samples of 2**30 values, or 2**31 values or more to find.
    """
    batch, channels, height, width = shape
    x = out if a is None else a
    assert x is not None  # every kind of pooling reads or writes images
    shape = batch, channels, height * width, channels_last
    workspace = _workspace(x, LIBRARY.cdn_cuda_pool_workspace(kind, TYPES[x.dtype], *shape))
    _run("cdn_cuda_pool", x, kind, *map(address, (a, b, values, out)), TYPES[x.dtype], *shape, address(workspace))


def random_words(batch: int, blocks: int, seed: int, offset: Tensor, stream: int, device: torch.device | str) -> Tensor:
    """Return the integers behind the noise, int64 [batch, blocks, 4] with values in [0, 2**32)."""
    words = torch.empty(batch, blocks, 4, dtype=torch.int32, device=device)
    _run("cdn_cuda_random_words", words, address(words), batch, blocks, stream, seed, address(offset))
    return words.long() & 0xFFFFFFFF


def _aligned(x: Tensor | None) -> Tensor | None:
    """Return a tensor whose elements begin at a multiple of 16 bytes, x if it does; None for None."""
    return x if x is None or x.data_ptr() % 16 == 0 else x.clone()


def _stream(x: Tensor) -> int:
    """Return the stream that kernels on a tensor run in."""
    return torch.cuda.current_stream(x.device).cuda_stream


def _workspace(x: Tensor, size: int) -> Tensor | None:
    """Return memory of so many bytes on the device of a tensor, None for none."""
    if size < 0:
        _check(size)
    return torch.empty(size, dtype=torch.uint8, device=x.device) if size else None


def _run(function: str, x: Tensor, *arguments: Any) -> None:
    """Call a function of the library with the device and the stream of a tensor."""
    with torch.cuda.device_of(x):
        _check(getattr(LIBRARY, function)(*arguments, _stream(x)))


def _check(status: int) -> None:
    if status:
        error = ValueError if status in (-2, -3) else RuntimeError
        raise error(f"the CUDA library: {LIBRARY.cdn_cuda_error(status).decode()}")
