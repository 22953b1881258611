"""Pictures of noisy test images, denoised by a model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cdn.data.split import ImageSplit
from cdn.errors import CDNError
from cdn.evaluation import SIGMAS
from cdn.model import capabilities
from cdn.model.density import denoise
from cdn.model.inputs import check_sigma, sigma_text
from cdn.model.modes import evaluating
from cdn.noise_keys import EVALUATION
from cdn.pictures.grid import Column, draw_grid, with_psnr
from cdn.pictures.style import save
from cdn_kernels import reference as torch_ops
from cdn_kernels.noise import Noise


def denoising_picture(
    model: nn.Module,
    split: ImageSplit,
    path: str | Path,
    *,
    sigmas: Sequence[float] = SIGMAS,
    count: int = 8,
    classes: Sequence[str] = (),
    seed: int = 0,
    precision: str = "float32",
) -> None:
    """Draw rows of test images: clean, and per noise level noisy, denoised and denoised given the class.

    Each tile carries its PSNR, each column the mean PSNR of its tiles, in dB and of unclipped images.

    Args:
        model: a :class:`cdn.model.GradResNet`, or a :class:`cdn.model.DirectDenoiser`, which knows no
            classes; its training mode is restored afterwards.
        split: an :class:`cdn.data.ImageSplit`; ``count`` of its exact images, evenly spread, are shown.
        path: the picture, .png, .pdf or .svg.
        sigmas: noise levels above 0, in the units of images in [0, 1].
        count: number of rows.
        classes: names of the classes, to name the rows.
        seed: of the noise.
        precision: "float32" or "bf16".

    Raises:
        CDNError: the model cannot denoise, or no image of the split is exact.
        ValueError: a noise level that is not above 0.
    """
    if not capabilities.denoises(model):
        raise CDNError(f"denoising_picture: expected a model that denoises, got {capabilities.kind(model)}")
    exact = split.exact.nonzero()[:, 0]
    if len(exact) == 0:
        raise CDNError("denoising_picture: expected exact images, but all of the split are marked as inexact")
    rows = exact[torch.linspace(0, len(exact) - 1, min(count, len(exact))).round().long()]
    images, labels = split.load(rows)
    with evaluating(model, precision) as device, torch.no_grad():
        x = images.to(device).float().div(255)
        groups: list[list[Column]] = [[("clean", x, ())]]
        for sigma in sigmas:
            groups.append(_columns(model, x, labels.to(device), sigma, EVALUATION.key(seed)))
    names = [classes[label] if classes else f"class {label}" for label in labels.tolist()]
    save(draw_grid(groups, names), path)


def chains_picture(images: Tensor, path: str | Path, side: int = 8) -> None:
    """Draw the states of the chains of a sampler: the first ``side x side`` images [N, C, H, W], clipped to [0, 1]."""
    save(draw_grid([[("", images[column : side**2 : side], ()) for column in range(side)]]), path)


def _columns(model: nn.Module, x: Tensor, labels: Tensor, sigma: float, key: Noise) -> list[Column]:
    check_sigma(sigma)
    y, _ = torch_ops.sample_noise(x, sigma, key)
    columns = [(f"σ = {sigma_text(sigma)}", y), ("denoised", denoise(model, y, sigma))]
    if not capabilities.is_direct_denoiser(model):
        columns.append(("given class", denoise(model, y, sigma, labels)))
    return [with_psnr(title, images, x) for title, images in columns]
