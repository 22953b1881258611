"""Noise from counters: images plus noise, standard normals, and noise levels.

The semantics are those of :mod:`cdn_kernels.reference`, to a few units in the last place of the normals; the
integers behind them and the noise levels are equal. Four operations are registered with torch under
``cdn_kernels``: ``sample_noise``, which draws sigma in the same call, ``add_noise``, which is given sigma,
``standard_normal`` and ``sample_sigma``.

Channels-last images keep their layout; any other layout that is not contiguous is made so, like the result.
Limitation: under torch.func transforms and forward-mode differentiation only eps comes from the library.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cdn_kernels import reference
from cdn_kernels.backends.dispatch import kernels, resolve
from cdn_kernels.noise import Noise, NoiseLevels, Sigma
from cdn_kernels.ops.common import (
    LIBRARY,
    Context,
    Gradients,
    as_kernels_take_it,
    check_dtype,
    empty_result,
    is_channels_last,
    register,
)
from cdn_kernels.reference import compute_dtype, per_image
from cdn_kernels.transforms import transformed

Key = tuple[int, Tensor, int, Tensor | None]  # seed, offset, first, places

# ------------------------------------------------------------------------------------------------------------
# Public functions
# ------------------------------------------------------------------------------------------------------------


def sample_noise(
    x: Tensor, sigma: Sigma | NoiseLevels, noise: Noise | Tensor, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Add noise of one level per image: ``y = x + sigma eps``.

    Args:
        x: images [B, ...], float32, float64, bfloat16 or float16.
        sigma: a float, a 0-d or [B] tensor, or :class:`NoiseLevels` to draw it from.
        noise: a :class:`Noise` key, or eps itself (the shape and device of x).
        impl: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        (y, sigma [B]): y in the dtype of x, rounded once; sigma in float32 (float64 for float64 images). Both
        can be differentiated to any order with respect to x, sigma and eps; a drawn sigma is a constant.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the chosen impl cannot run here.
    """
    check_images(x, "x")
    check_noise(noise, x)
    if isinstance(sigma, NoiseLevels) and not isinstance(noise, Noise):
        raise TypeError("noise must be a Noise(seed, offset) key if sigma is NoiseLevels, got a tensor")
    backend = resolve("sample_noise", impl, x.device, x.dtype)
    if backend == "reference" or not isinstance(noise, Noise):
        return reference.sample_noise(x, sigma, noise)
    real = compute_dtype(x.dtype)
    if transformed():
        if isinstance(sigma, NoiseLevels):
            sigma = sample_sigma(x.shape[0], noise, sigma, dtype=real, device=x.device, impl=impl)
        eps = standard_normal(x.shape, noise, dtype=real, device=x.device, impl=impl)
        return reference.sample_noise(x, sigma, eps)
    if isinstance(sigma, NoiseLevels):
        y, drawn = torch.ops.cdn_kernels.sample_noise(x, *_law(sigma), *key(noise, len(x), x.device), backend)
        return y, drawn.detach()
    sigma = per_image(sigma, x, "sigma")
    return torch.ops.cdn_kernels.add_noise(x, sigma, *key(noise, len(x), x.device), backend), sigma


def standard_normal(
    shape: Sequence[int],
    noise: Noise,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
    impl: str = "auto",
) -> Tensor:
    """Draw standard normals: the eps that :func:`sample_noise` adds for the same key.

    Args:
        shape: [B, ...].
        noise: a :class:`Noise` key.
        dtype: float64 draws in float64; float32, bfloat16 and float16 draw in float32 and round.
        memory_format: contiguous, or channels last (4-d shapes); the values do not depend on it.
        impl: "auto", "reference", "cpu", "triton" or "cuda".
    """
    shape, device = torch.Size(shape), torch.device(device)
    check_dtype("dtype", dtype)
    _check_key(noise)
    if not shape:
        raise ValueError("shape must be [B, ...], got []")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format must be contiguous_format or channels_last, got {memory_format}")
    if memory_format == torch.channels_last and len(shape) != 4:
        raise ValueError(f"memory_format channels_last needs a 4-d shape, got {list(shape)}")
    backend = resolve("standard_normal", impl, device, dtype)
    if backend == "reference":
        return reference.standard_normal(shape, noise, dtype, device).contiguous(memory_format=memory_format)
    drawn = key(noise, shape[0], device)
    return torch.ops.cdn_kernels.standard_normal(shape, *drawn, dtype, device, memory_format, backend)


def sample_sigma(
    batch: int,
    noise: Noise,
    levels: NoiseLevels,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    impl: str = "auto",
) -> Tensor:
    """Draw one noise level per image, [batch], from :class:`NoiseLevels`; dtype is float32 or float64."""
    device = torch.device(device)
    _check_key(noise)
    if not isinstance(levels, NoiseLevels):
        raise TypeError(f"levels must be NoiseLevels, got {type(levels).__name__}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    backend = resolve("sample_sigma", impl, device, dtype)
    if backend == "reference":
        return reference.sample_sigma(batch, noise, levels, dtype, device)
    drawn = key(noise, batch, device)
    return torch.ops.cdn_kernels.sample_sigma(batch, *_law(levels), *drawn, dtype, device, backend)


# ------------------------------------------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------------------------------------------


def check_images(x: object, name: str) -> None:
    """Raise TypeError or ValueError unless x is a tensor [B, ...] of a dtype of the kernels."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of images [B, ...], got {type(x).__name__}")
    check_dtype(name, x.dtype)
    if x.dim() == 0:
        raise ValueError(f"{name} must have shape [B, ...], got a 0-d tensor")


def _check_key(noise: object) -> None:
    if not isinstance(noise, Noise):
        raise TypeError(f"noise must be a Noise(seed, offset) key, got {type(noise).__name__}")


def check_noise(noise: object, x: Tensor) -> None:
    """Raise TypeError or ValueError unless noise is a key, or a tensor that fits images x."""
    if isinstance(noise, Noise):
        return
    if not isinstance(noise, Tensor):
        raise TypeError(f"noise must be a Noise(seed, offset) key or a tensor, got {type(noise).__name__}")
    if noise.shape != x.shape:
        raise ValueError(f"noise must have the shape of the images, {list(x.shape)}, got {list(noise.shape)}")
    if noise.device != x.device:
        raise ValueError(f"noise must be on the device of the images, {x.device}, got {noise.device}")


def key(noise: Noise, batch: int, device: torch.device) -> Key:
    """Return (seed, offset, first, places) of a key as the operations take them.

    Args:
        noise: the key.
        batch: the number of images that it is to draw for.
        device: where.

    Returns:
        The signed integer of the same 64 bits, a tensor int64 [], the place of the first image, and None; or 0 and the
        places of all, int64 [B].

    Raises:
        ValueError: a tensor on another device, or of another length than the batch.
    """
    signed = noise.seed if noise.seed < 1 << 63 else noise.seed - (1 << 64)
    if not isinstance(noise.places, Tensor):
        return signed, noise.position(device), noise.places, None
    noise.check_places(batch, device)
    return signed, noise.position(device), 0, noise.places.contiguous()


def _law(levels: NoiseLevels) -> tuple[str, float, float, float, str]:
    return levels.law, levels.low, levels.high, levels.clean_share, levels.clean


# ------------------------------------------------------------------------------------------------------------
# Registration
# ------------------------------------------------------------------------------------------------------------

LIBRARY.define(
    "add_noise(Tensor x, Tensor sigma, SymInt seed, Tensor offset, SymInt first, Tensor? places, str backend) -> Tensor"
)
LIBRARY.define(
    "sample_noise(Tensor x, str law, float low, float high, float clean_share, str clean, SymInt seed, "
    "Tensor offset, SymInt first, Tensor? places, str backend) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "standard_normal(SymInt[] shape, SymInt seed, Tensor offset, SymInt first, Tensor? places, ScalarType dtype, "
    "Device device, MemoryFormat memory_format, str backend) -> Tensor"
)
LIBRARY.define(
    "sample_sigma(SymInt batch, str law, float low, float high, float clean_share, str clean, SymInt seed, "
    "Tensor offset, SymInt first, Tensor? places, ScalarType dtype, Device device, str backend) -> Tensor"
)


def _add_noise(
    x: Tensor, sigma: Tensor, seed: int, offset: Tensor, first: int, places: Tensor | None, backend: str
) -> Tensor:
    y = empty_result(x)
    x, channels = as_kernels_take_it(x)
    kernels(backend).add_noise(x, sigma.contiguous(), y, seed, offset, channels, first, places)
    return y


def _sample_noise(
    x: Tensor,
    law: str,
    low: float,
    high: float,
    clean_share: float,
    clean: str,
    seed: int,
    offset: Tensor,
    first: int,
    places: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    y, sigma = _empty_results(x)
    x, channels = as_kernels_take_it(x)
    kernels(backend).sample_noise(
        x, sigma, y, law, low, high, clean_share, clean, seed, offset, channels, first, places
    )
    return y, sigma


def _empty_results(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return empty y and sigma [B] for images x."""
    return empty_result(x), torch.empty(x.shape[:1], dtype=compute_dtype(x.dtype), device=x.device)


def _standard_normal(
    shape: Sequence[int],
    seed: int,
    offset: Tensor,
    first: int,
    places: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    memory_format: torch.memory_format,
    backend: str,
) -> Tensor:
    eps = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
    channels = eps.shape[1] if is_channels_last(eps) else 0
    kernels(backend).add_noise(None, None, eps, seed, offset, channels, first, places)
    return eps


def _sample_sigma(
    batch: int,
    law: str,
    low: float,
    high: float,
    clean_share: float,
    clean: str,
    seed: int,
    offset: Tensor,
    first: int,
    places: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    backend: str,
) -> Tensor:
    sigma = torch.empty(batch, dtype=dtype, device=device)
    kernels(backend).sample_sigma(sigma, law, low, high, clean_share, clean, seed, offset, first, places)
    return sigma


def _save_for_backward(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, ctx.seed, offset, ctx.first, places, ctx.backend = inputs
    ctx.shape = x.shape
    ctx.save_for_backward(offset, places)


def _add_noise_backward(ctx: Context, g: Tensor) -> Gradients:
    """Return the gradients g and sum(g eps) per image, in operations that can be differentiated again."""
    g_sigma = None
    if ctx.needs_input_grad[1]:
        real = compute_dtype(g.dtype)
        offset, places = ctx.saved_tensors
        drawn = ctx.seed, offset, ctx.first, places
        eps = torch.ops.cdn_kernels.standard_normal(
            ctx.shape, *drawn, real, g.device, torch.contiguous_format, ctx.backend
        )
        g_sigma = (g.to(real) * eps).reshape(ctx.shape[0], math.prod(ctx.shape[1:])).sum(1)
    return g, g_sigma, *[None] * 5


register("add_noise", _add_noise, lambda x, *_: empty_result(x))
register("sample_noise", _sample_noise, lambda x, *_: _empty_results(x))
register(
    "standard_normal",
    _standard_normal,
    lambda shape, seed, offset, first, places, dtype, device, memory_format, backend: torch.empty(
        shape, dtype=dtype, device=device, memory_format=memory_format
    ),
)
register(
    "sample_sigma",
    _sample_sigma,
    lambda batch, law, low, high, clean_share, clean, seed, offset, first, places, dtype, device, backend: torch.empty(
        batch, dtype=dtype, device=device
    ),
)
torch.library.register_autograd(
    "cdn_kernels::add_noise", _add_noise_backward, setup_context=_save_for_backward, lib=LIBRARY
)
# A drawn sigma is a constant, and y moves with x one to one.
torch.library.register_autograd("cdn_kernels::sample_noise", lambda ctx, g, g_sigma: (g, *[None] * 10), lib=LIBRARY)
