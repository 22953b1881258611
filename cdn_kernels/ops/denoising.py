"""The denoising score matching loss, with the noise drawn again from its key instead of kept.

Registered with torch as ``denoising_error``, the mean square of ``sigma s + eps`` of each image, and
``denoising_error_backward``, its gradient by the score.
"""

from typing import Any

import torch
from torch import Tensor

from cdn_kernels import reference
from cdn_kernels.backends.dispatch import kernels
from cdn_kernels.noise import Noise, Sigma
from cdn_kernels.ops.common import (
    LIBRARY,
    Context,
    Gradients,
    as_kernels_take_it,
    empty_result,
    register,
    resolve_untransformed,
)
from cdn_kernels.ops.noise import check_images, check_noise, key
from cdn_kernels.reference import compute_dtype, expand, per_image

LIBRARY.define(
    "denoising_error(Tensor score, Tensor sigma, SymInt seed, Tensor offset, SymInt first, Tensor? places, "
    "str backend) -> Tensor"
)
LIBRARY.define(
    "denoising_error_backward(Tensor score, Tensor sigma, Tensor grad, SymInt seed, Tensor offset, SymInt first, "
    "Tensor? places, str backend) -> Tensor"
)


def denoising_loss(
    score: Tensor, sigma: Sigma, noise: Noise | Tensor, *, count: int | Tensor | None = None, impl: str = "auto"
) -> Tensor:
    """Return the denoising score matching loss, which is 1 for the identity denoiser at every noise level.

    The mean of ``(sigma s + eps)^2`` over the pixels of the images with sigma > 0; 0 if there are none. Minimized by
    ``s(y) = -E[sigma eps | y] / E[sigma^2 | y]`` (Vincent, "A connection between score matching and denoising
    autoencoders", 2011).

    Args:
        score: s [B, ...] with at least one value per image; float32, float64, bfloat16 or float16.
        sigma: a float, a 0-d or [B] tensor, >= 0.
        noise: the :class:`Noise` key that eps was drawn from by :func:`cdn_kernels.sample_noise`, or eps itself.
        count: the number of images that the mean is over, at least 1, where these are a share of a batch: that of the
            images of the whole batch with sigma > 0. The losses of all shares then add up to that of the batch, and so
            do their gradients. Or a tensor [] of the device, which is not looked at. None for the images at hand.
        impl: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        A scalar in float32 (float64 for float64), differentiable to any order by score and sigma.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the chosen impl cannot run here.
    """
    check_images(score, "score")
    check_noise(noise, score)
    _check_count(count, score)
    sigma = per_image(sigma, score, "sigma")
    backend = resolve_untransformed("denoising_loss", impl, score)
    if isinstance(noise, Noise) and (backend == "reference" or sigma.requires_grad or not score.numel()):
        noise = reference.standard_normal(score.shape, noise, compute_dtype(score.dtype), score.device)
    if not isinstance(noise, Noise):
        return reference.denoising_loss(score, sigma, noise, count)
    errors = torch.ops.cdn_kernels.denoising_error(score, sigma, *key(noise, len(score), score.device), backend)
    return reference.mean_error(errors, sigma, count)


def _check_count(count: object, score: Tensor) -> None:
    if isinstance(count, Tensor):
        if count.dim() or count.device != score.device:
            raise ValueError(
                f"count must be a number or a tensor [] on {score.device}, got {list(count.shape)} on {count.device}"
            )
    elif count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ValueError(f"count must be a number of images of at least 1, got {count!r}")


def _error(
    score: Tensor, sigma: Tensor, seed: int, offset: Tensor, first: int, places: Tensor | None, backend: str
) -> Tensor:
    score, channels = as_kernels_take_it(score)
    errors = torch.empty_like(sigma, memory_format=torch.contiguous_format)
    kernels(backend).denoising(score, sigma.contiguous(), seed, offset, channels, first, places, errors=errors)
    return errors


def _error_backward(
    score: Tensor,
    sigma: Tensor,
    grad: Tensor,
    seed: int,
    offset: Tensor,
    first: int,
    places: Tensor | None,
    backend: str,
) -> Tensor:
    gradient = empty_result(score)
    score, channels = as_kernels_take_it(score)
    drawn = seed, offset, channels, first, places
    kernels(backend).denoising(score, sigma.contiguous(), *drawn, factors=grad.contiguous(), gradient=gradient)
    return gradient


register(
    "denoising_error", _error, lambda score, sigma, *_: torch.empty_like(sigma, memory_format=torch.contiguous_format)
)
register("denoising_error_backward", _error_backward, lambda score, *_: empty_result(score))


def _save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.seed, offset, ctx.first, places, ctx.backend = inputs
    ctx.save_for_backward(*tensors, offset, places)


def _error_derivative(ctx: Context, g: Tensor) -> Gradients:
    score, sigma, offset, places = ctx.saved_tensors
    drawn = ctx.seed, offset, ctx.first, places
    gradient = torch.ops.cdn_kernels.denoising_error_backward(score, sigma, g, *drawn, ctx.backend)
    return gradient, *[None] * 6


def _second_derivatives(ctx: Context, t: Tensor) -> Gradients:
    """Differentiate <2 sigma / size grad (sigma s + eps), t>, linear in s and in grad; rarely asked for."""
    score, sigma, grad, offset, places = ctx.saved_tensors
    scale = 2 * sigma / (score.numel() // score.shape[0])
    by_score = (t * expand(grad * scale * sigma, t)).to(score.dtype)
    real, drawn = score.to(grad.dtype), (ctx.seed, offset, ctx.first, places)
    unit = torch.ops.cdn_kernels.denoising_error_backward(real, sigma, torch.ones_like(grad), *drawn, ctx.backend)
    return by_score, None, (t.to(grad.dtype) * unit).flatten(1).sum(1), *[None] * 5


torch.library.register_autograd("cdn_kernels::denoising_error", _error_derivative, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd(
    "cdn_kernels::denoising_error_backward", _second_derivatives, setup_context=_save, lib=LIBRARY
)
