"""The residual of a denoiser, D(y) - y, which is all that samplers ask of a model.

A *residual* is a callable ``residual(y, sigma=None) -> (f, level)`` for images y [B, C, H, W]: ``f(y) = D(y) - y``, the
shape of y, and the noise level [B] that y has: the given one where a prior is known level by level, an estimate where
the network is blind. Any such callable can be sampled from; :func:`blind_residual` makes one of a trained model.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from cdn.model.capabilities import is_direct_denoiser
from cdn.model.density import score, sigma_from_score
from cdn_kernels import Noise, sample_noise, standard_normal
from cdn_kernels import reference as torch_ops

LEVELS = ("residual", "calibrated")


class Residual(Protocol):
    """What samplers ask of a model, as the module describes it."""

    def __call__(self, y: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``D(y) - y`` and the noise level [B] of images y [B, C, H, W], which may be given."""


def blind_residual(
    model: nn.Module, label: int | Tensor | None = None, *, guidance: float = 1.0, level: str = "residual"
) -> Residual:
    """Return the residual of a trained model, which is blind: it ignores the noise level that it is told.

    ``f(y) = sigma(y)^2 s(y)`` with the noise level sigma(y) that the calibration of the model reads from its own score
    (:func:`cdn.estimate_sigma`).

    Args:
        model: a model of log-densities, or a :class:`cdn.DirectDenoiser`, whose output is -f(y).
        label: None, one class, or one per image [B]: the score given the class.
        guidance: how many times to take the difference that the class makes to the score: 1 samples from the class,
            more exaggerates it (Dhariwal & Nichol 2021) and doubles the cost.
        level: which estimate of the noise level to return with f: "residual", its root mean square ``|f(y)| / sqrt(d)``
            (Kadkhodaie & Simoncelli 2021), which misses what the denoiser cannot remove, but at most sigma(y), which
            it may exceed at levels beyond those of the training; or "calibrated", sigma(y).

    Raises:
        ValueError: an unknown level; a direct denoiser with a label or with level="calibrated"; at the first call, a
            model that is no density, or a label out of range.
    """
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {', '.join(LEVELS)}, got {level!r}")
    if is_direct_denoiser(model):
        if label is not None or level == "calibrated":
            raise ValueError(
                "blind_residual: a direct denoiser has no classes and no calibration, expected label=None "
                f"and level='residual', got label={label!r} and level={level!r}"
            )
        return lambda y, sigma=None: _direct_residual(model, y)

    def residual(y: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s = score(model, y, label)
        if label is not None and guidance != 1:
            s = torch.lerp(score(model, y), s, guidance)
        estimate = sigma_from_score(model, s)
        f = torch_ops.expand(estimate.square(), s) * s
        return f, estimate if level == "calibrated" else torch.minimum(root_mean_square(f), estimate)

    return residual


def root_mean_square(images: Tensor) -> Tensor:
    """Return the root mean square [B] of images [B, ...]."""
    return images.square().flatten(1).mean(1).sqrt()


def noisy_start(
    shape: Sequence[int],
    noise: Noise,
    *,
    sigma: float = 1.0,
    mean: float | Tensor = 0.5,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Return images to start samplers from: white noise of standard deviation sigma about a grey image.

    Args:
        shape: (B, C, H, W).
        noise: a :class:`cdn.Noise` key.
        sigma: standard deviation, in units of images in [0, 1].
        mean: a number, or what broadcasts with the shape.
        device: of the result, float32, in the layout that convolutions are fastest in.
    """
    z = standard_normal(shape, noise, device=device, memory_format=torch.channels_last)
    return mean + sigma * z


def advance(y: Tensor, f: Tensor, step: float, gamma: Tensor, noise: Noise) -> Tensor:
    """Return ``y + step f + gamma z``: the step of every sampler here.

    Args:
        y, f: images and their residual [B, C, H, W].
        step: the share of the residual to take, 1 for the denoised images.
        gamma: deviation of the fresh noise z per image [B].
        noise: the :class:`cdn.Noise` key of z.
    """
    return sample_noise(y + step * f, gamma, noise)[0]


def key_of_step(noise: Noise, t: int) -> Noise:
    """Return the key of step t of a walk; the key of the walk itself is for where it starts."""
    return noise.moved(1 + t)


def _direct_residual(model: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        f = -model(y)
    return f, root_mean_square(f)
