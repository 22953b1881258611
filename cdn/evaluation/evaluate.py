"""Measure a model on a test split: accuracy, calibration and denoising, reproducibly, on any number of processes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cdn.data.split import ImageSplit
from cdn.errors import CDNError
from cdn.evaluation.metrics import calibration_error, psnr, ssim
from cdn.model import capabilities
from cdn.model.density import denoise
from cdn.model.finite import decided
from cdn.model.inputs import check_sigma, sigma_key
from cdn.model.modes import evaluating
from cdn.noise_keys import EVALUATION
from cdn.processes import ALONE, Processes
from cdn_kernels import reference as torch_ops
from cdn_kernels.noise import NoiseLevels

# Noise levels of tables and pictures.
SIGMAS = (15 / 255, 25 / 255, 50 / 255)
# Noise is drawn for this many images at a time, so that image i gets the same noise whatever the batch size.
CHUNK = 256

# What an evaluation found, by name; None for what the model cannot give.
Report = dict[str, float | None]
_Name = TypeVar("_Name")


def evaluate(
    model: nn.Module,
    split: ImageSplit,
    *,
    sigmas: Sequence[float] = SIGMAS,
    batch_size: int = 256,
    limit: int | None = None,
    denoising_limit: int | None = None,
    levels: NoiseLevels = NoiseLevels(),
    seed: int = 0,
    precision: str = "float32",
    with_ssim: bool = False,
    objective: str | None = None,
    progress: bool = False,
    processes: Processes = ALONE,
) -> Report:
    """Measure accuracy, calibration and denoising of a model.

    Args:
        model: any model of :mod:`cdn.model`; its training mode is restored afterwards.
        split: an :class:`cdn.data.ImageSplit`.
        sigmas: noise levels of the tables, above 0, in the units of images in [0, 1].
        batch_size: images per forward; more than 256 has no effect.
        limit: how many images to classify, those of :meth:`cdn.data.ImageSplit.first`; None for all.
        denoising_limit: how many exact images (``split.exact``) to denoise, the first in the same way; None for all.
        levels: the law of sigma for ``denoising_loss`` and ``accuracy_noisy``; every image gets noise, whatever its
            clean_share.
        seed: of the noise. The same seed gives the same noise, whatever batch size and device.
        precision: "float32", or "bf16" for a forward under autocast.
        with_ssim: measure SSIM as well.
        objective: what the model was trained on, as in the settings of a run; None for all that it can do.
        progress: show a progress bar on stderr.
        processes: those that divide the images among them, batch by batch, each with the same model, split and
            arguments. The figures have the same bits on each of them as on one process alone, with as many threads.

    Returns:
        A dict, with ``S`` for each of the sigmas in grey levels, as 25 for 25/255: ``classified`` and ``denoised``, the
        numbers of images, ``accuracy``, ``accuracy_noisy``, ``accuracy_sigma_S`` (fractions), ``ece``,
        ``psnr_noisy_S``, ``psnr_S`` (means over images in dB, nothing clipped), ``ssim_noisy_S``, ``ssim_S`` if asked
        for, and ``denoising_loss``, the mean of ``(D(y) - x)^2 / sigma^2``, 1 for the identity. What a model cannot
        give is None: all denoising figures of a :class:`cdn.model.ResNet`, all others of a
        :class:`cdn.model.DirectDenoiser`; so are figures of a task that the objective leaves out, which would only
        mislead, and denoising figures on a split without exact images. An image whose logits are not finite is
        classified wrongly; calibration and denoising figures that it has a part in are nan.

    Raises:
        CDNError: a limit, batch size or precision out of range.
        ValueError: a noise level that is not above 0.

    Warns:
        UserWarning: a noise level so high that grey levels must be meant.
    """
    _check(sigmas, batch_size=batch_size, limit=limit, denoising_limit=denoising_limit)
    indices, exact = split.first(limit), split.first(denoising_limit, exact=True)
    classifies = capabilities.classifies(model, objective)
    denoises = capabilities.denoises(model, objective) and len(exact) > 0
    of_classes, of_images = _figures(sigmas, with_ssim)
    report: Report = dict.fromkeys(["classified", "denoised", *of_classes, *of_images])
    measured = ([indices] if classifies else []) + ([exact] if denoises else [])
    total = sum(len(batch.indices) for which in measured for batch in _share(which, batch_size, processes))
    with tqdm(total=total, unit="image", leave=False, disable=not (progress and processes.first)) as bar:
        options: dict[str, Any] = dict(
            seed=seed, batch_size=batch_size, precision=precision, bar=bar, processes=processes
        )
        if classifies:
            report |= dict(classified=len(indices))
            report |= _classification(model, split, indices, sigmas, levels, **options)
        if denoises:
            report |= dict(denoised=len(exact))
            report |= _denoising(model, split, exact, sigmas, levels, of_images, **options)
    return report


def predict(
    model: nn.Module,
    split: ImageSplit,
    *,
    sigmas: Sequence[float | None] = (0,),
    levels: NoiseLevels = NoiseLevels(),
    limit: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    precision: str = "float32",
    bar: tqdm | None = None,
    processes: Processes = ALONE,
) -> tuple[dict[float | None, Tensor], Tensor]:
    """Return the class probabilities of the first images of a split at some noise levels.

    Args:
        model: a model with classes; its training mode is restored afterwards.
        split: an :class:`cdn.data.ImageSplit`.
        sigmas: noise levels in the units of the images; 0 for clean images, None for levels drawn from ``levels``.
        levels: the law of sigma for None.
        limit, batch_size, seed, precision, processes: as for :func:`evaluate`.
        bar: a tqdm bar to advance by the number of images.

    Returns:
        (probabilities, labels): a dict from each of the sigmas to float32 [N, classes], and int64 [N], on the
        CPU.
    """
    indices = split.first(limit)
    probabilities: dict[float | None, list[Tensor]] = {sigma: [] for sigma in sigmas}
    with evaluating(model, precision) as device, torch.no_grad():
        levels = replace(levels, clean_share=0.0)
        share = _share(indices, batch_size, processes)
        for x, eps, level in _noisy(split, share, levels, seed, device, bar):
            for sigma, parts in probabilities.items():
                y, _ = torch_ops.sample_noise(x, level if sigma is None else sigma, eps)
                parts.append(model(y).float().softmax(1).cpu())
    return _of_all(probabilities, processes), split.labels[indices]


def _check(sigmas: Sequence[float], **limits: int | None) -> None:
    for name, value in limits.items():
        if value is not None and value < 1:
            raise CDNError(f"{name}: expected at least 1 image, got {value}")
    for sigma in sigmas:
        check_sigma(sigma)


def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, batch_size: int) -> float:
    """Return the share of images x [N, C, H, W] that a model classifies as labels [N] say, logits of nan as none."""
    with torch.no_grad():
        predicted = torch.cat([decided(model(part)) for part in x.split(batch_size)])
    return float((predicted == labels).double().mean())


def _classification(
    model: nn.Module, split: ImageSplit, indices: Tensor, sigmas: Sequence[float], levels: NoiseLevels, **options: Any
) -> dict[str, float]:
    probabilities, labels = predict(
        model, split, sigmas=(0, None, *sigmas), levels=levels, limit=len(indices), **options
    )
    right = {sigma: float((decided(p) == labels).double().mean()) for sigma, p in probabilities.items()}
    told = bool(probabilities[0].isfinite().all())
    ece = calibration_error(probabilities[0], labels) if told else math.nan
    shares = {f"accuracy_sigma_{sigma_key(sigma)}": right[sigma] for sigma in sigmas}
    return dict(accuracy=right[0], accuracy_noisy=right[None], ece=ece, **shares)


def _denoising(
    model: nn.Module,
    split: ImageSplit,
    indices: Tensor,
    sigmas: Sequence[float],
    levels: NoiseLevels,
    figures: Sequence[str],
    *,
    seed: int,
    batch_size: int,
    precision: str,
    bar: tqdm,
    processes: Processes,
) -> dict[str, float]:
    found: dict[str, list[Tensor]] = {figure: [] for figure in figures}
    levels = replace(levels, clean_share=0.0)
    with evaluating(model, precision) as device, torch.no_grad():
        share = _share(indices, batch_size, processes)
        for x, eps, level in _noisy(split, share, levels, seed, device, bar):
            for sigma in sigmas:
                y, _ = torch_ops.sample_noise(x, sigma, eps)
                for prefix, images in (("noisy_", y), ("", denoise(model, y, sigma))):
                    for name, metric in (("psnr", psnr), ("ssim", ssim)):
                        if (key := f"{name}_{prefix}{sigma_key(sigma)}") in found:
                            found[key].append(metric(images, x).cpu())
            y, _ = torch_ops.sample_noise(x, level, eps)
            residual = (denoise(model, y, level) - x) / torch_ops.expand(level, x)
            found["denoising_loss"].append(residual.double().square().flatten(1).mean(1).cpu())
    return {key: float(values.mean()) for key, values in _of_all(found, processes).items()}


def _figures(sigmas: Sequence[float], with_ssim: bool) -> tuple[list[str], list[str]]:
    """Return the names of what is measured of a classifier, and of a denoiser."""
    names, metrics = list(map(sigma_key, sigmas)), ("psnr", "ssim") if with_ssim else ("psnr",)
    levels = [f"{metric}_{prefix}{name}" for metric in metrics for name in names for prefix in ("noisy_", "")]
    return ["accuracy", "accuracy_noisy", "ece", *(f"accuracy_sigma_{name}" for name in names)], [
        *levels,
        "denoising_loss",
    ]


class _Batch(NamedTuple):
    """Images that a model sees at once: indices into the split, and where they are in their chunk of noise."""

    position: int
    place: int
    indices: Tensor


def _share(indices: Tensor, batch_size: int, processes: Processes) -> list[_Batch]:
    """Return the batches of this process, which are those of one process alone: so are the bits of what is computed."""
    batches = [
        _Batch(position, place, part)
        for position, chunk in enumerate(indices.split(CHUNK))
        for place, part in zip(count(0, batch_size), chunk.split(batch_size))
    ]
    return [batches[k] for k in processes.share(len(batches))]


def _noisy(
    split: ImageSplit, batches: list[_Batch], levels: NoiseLevels, seed: int, device: torch.device, bar: tqdm | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images x [B, C, H, W] in [0, 1], unit noise eps of their shape and noise levels [B]."""
    for batch in batches:
        x, _ = split.images(batch.indices, device)
        key = replace(EVALUATION.key(seed, batch.position), places=batch.place)
        eps = torch_ops.standard_normal(x.shape, key, device=device)
        yield x, eps, torch_ops.sample_sigma(len(x), key, levels, device=device)
        if bar is not None:
            bar.update(len(x))


def _of_all(found: Mapping[_Name, list[Tensor]], processes: Processes) -> dict[_Name, Tensor]:
    """Return what all processes found of their images, one value or row per image, in the order of the images."""
    everything = processes.gather(found)
    return {name: torch.cat(list(chain.from_iterable(part[name] for part in everything))) for name in found}
