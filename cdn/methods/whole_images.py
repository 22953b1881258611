"""Denoise photographs at full resolution, with and without being told the noise level."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cdn.evaluation.metrics import psnr, ssim
from cdn.files import Results
from cdn.images.tiles import in_tiles
from cdn.model.capabilities import is_direct_denoiser
from cdn.model.density import denoise, sigma_from_score
from cdn.model.density import score as score_of
from cdn.model.finite import require_finite
from cdn_kernels import Noise
from cdn_kernels import reference as torch_ops

# How denoised photographs are measured.
METRICS = {"psnr": psnr, "ssim": ssim}


class Denoised(NamedTuple):
    """What :func:`denoise_photograph` returns.

    Attributes:
        noisy: [1, C, H, W], not clipped, like the other images.
        known: the denoised image for the true noise level; None for a direct denoiser, which is not told.
        blind: the denoised image for the estimated one.
        sigma: the estimated one; None for a direct denoiser, which does not say.
    """

    noisy: Tensor
    known: Tensor | None
    blind: Tensor
    sigma: float | None


def denoise_photograph(model: nn.Module, x: Tensor, sigma: float, noise: Noise, tile: int | None = None) -> Denoised:
    """Add noise to a photograph and take it off again.

    Args:
        model: a :class:`cdn.GradResNet`, or a :class:`cdn.DirectDenoiser`.
        x: [1, C, H, W] in [0, 1].
        sigma: noise level, in the units of x.
        noise: a :class:`cdn.Noise` key.
        tile: side of overlapping tiles to save memory, at least 16; None for the image as a whole.

    Returns:
        :class:`Denoised`.

    Limitations: the norms take statistics over the whole image, so tiles are close to it and not equal.
    """
    y, _ = torch_ops.sample_noise(x, sigma, noise)
    size = tile or max(y.shape[2:])
    if is_direct_denoiser(model):
        return Denoised(y, None, in_tiles(lambda part: denoise(model, part, sigma), y, size), None)
    score, estimate = score_and_level(model, y, size)
    # The score is the same whatever the level: another one only scales what is added.
    return Denoised(y, y + sigma**2 * score, y + estimate**2 * score, estimate)


def score_and_level(
    model: nn.Module, y: Tensor, size: int, done: Callable[[], object] = lambda: None
) -> tuple[Tensor, float]:
    """Return the score of one image, from tiles of it, and the noise level that it tells: the median over the tiles.

    Args:
        model: a model of log-densities.
        y: noisy image [1, C, H, W].
        size: side of the tiles; one that covers the image is the image as a whole.
        done: called after each tile.

    Raises:
        NotFiniteError: an estimate that is not finite.
    """
    levels = []

    def of_tile(tile: Tensor) -> Tensor:
        found = score_of(model, tile)
        levels.append(sigma_from_score(model, found))
        done()
        return found

    score = in_tiles(of_tile, y, size)
    found = torch.stack(levels)
    require_finite(found, "the noise level cannot be estimated: the score of the model is nan or infinite")
    return score, float(found.median())


def measure_denoised(result: Denoised, x: Tensor) -> Results:
    """Return the figures of one photograph at one noise level; None for what the model cannot give."""
    images = dict(noisy=result.noisy, known=result.known, blind=result.blind)
    figures = {
        f"{name}_{how}": None if image is None else float(metric(image, x))
        for name, metric in METRICS.items()
        for how, image in images.items()
    }
    return figures | dict(estimated=None if result.sigma is None else result.sigma)


def mean_of(rows: Sequence[Results], key: str | None = None) -> Any:
    """Return the mean of a figure over rows, or of all figures; None where they are None."""
    if key is None:
        return {key: mean_of(rows, key) for key in rows[0]}
    values = [row[key] for row in rows]
    return None if None in values else sum(values) / len(values)
