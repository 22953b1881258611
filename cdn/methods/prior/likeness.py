"""Measures of samples: the Fréchet distance of features, and the nearest training images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cdn.evaluation.evaluate import accuracy
from cdn.model.capabilities import classifies
from cdn.model.modes import evaluating

if TYPE_CHECKING:
    from cdn.data import ImageSplit


def pooled_features(model: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return what the last stage of a model's trunk finds in images, averaged over pixels.

    Args:
        model: any model of :mod:`cdn.model`.
        images: [N, C, H, W] in [0, 1].
        batch_size: images per forward.

    Returns:
        float64 [N, features], on the CPU.
    """
    found: list[Tensor] = []
    last = lambda module, inputs, output: found.append(output if torch.is_tensor(output) else output[-1])
    hook = model.get_submodule("trunk").register_forward_hook(last)
    try:
        with torch.no_grad():
            for part in images.split(batch_size):
                model(part)
    finally:
        hook.remove()
    return torch.cat([h.double().mean((2, 3)).cpu() for h in found])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Fréchet distance between Gaussians fitted to two sets of features.

    ``|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)`` for the means and covariances (Dowson & Landau 1982), as the
    "FID" of Heusel et al. 2017 has it for the features of an Inception network. Features of another network give other
    numbers: compare only what was measured by the same one.

    Args:
        a, b: features [N, F] and [M, F], N and M at least 2.

    Returns:
        A float, 0 for equal means and covariances. Few samples make it larger: compare sets of one size.

    Raises:
        ValueError: different numbers of features, or fewer than two samples.
    """
    for name, features in (("a", a), ("b", b)):
        if features.dim() != 2 or len(features) < 2:
            raise ValueError(f"{name}: expected features [N, F] of at least 2 samples, got {list(features.shape)}")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"frechet_distance: expected as many features in both, got {a.shape[1]} and {b.shape[1]}")
    a, b = a.double(), b.double()
    root = _square_root(a.T.cov())
    spread = torch.linalg.eigvalsh(root @ b.T.cov() @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * spread
    return max(float(distance), 0.0)


def nearest_images(
    images: Tensor, split: "ImageSplit", *, mirrored: bool = False, chunk: int = 2048
) -> tuple[Tensor, Tensor]:
    """Find the image of a split that is nearest to each of some images, pixel by pixel.

    Args:
        images: [N, C, H, W] in [0, 1], the shape of those of the split.
        split: an :class:`cdn.data.ImageSplit`, usually of the training.
        mirrored: compare with the mirror images of the split as well, which a training with flips has seen.
        chunk: images of the split in memory at a time.

    Returns:
        (nearest, distance): [N, C, H, W], and the root mean square difference per value [N]; nan for images
        that are not finite, to which none is near.
    """
    best = torch.full((len(images),), torch.inf, device=images.device)
    nearest = torch.full_like(images, torch.nan)
    for indices in torch.arange(len(split)).split(chunk):
        part, _ = split.images(indices, images.device)
        for candidates in (part, part.flip(3))[: 1 + mirrored]:
            distance, index = torch.cdist(images.flatten(1), candidates.flatten(1)).min(1)
            closer = distance < best
            best = torch.where(closer, distance, best)
            nearest[closer] = candidates[index[closer]]
    return nearest, torch.where(best.isinf(), torch.nan, best) / images[0].numel() ** 0.5


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def judge_sets(
    judge: nn.Module,
    sets: Mapping[str, Tensor],
    reference: Tensor,
    split: "ImageSplit",
    mirrored: bool,
    batch_size: int,
) -> tuple[dict[str, dict[str, float]], dict[str, tuple[Tensor, ...]]]:
    """Measure how much sets of images, all of one size, are like those of a training.

    Args:
        judge: whose features are compared.
        sets: images by name.
        reference: images of the training, whose features are compared with.
        split, mirrored: as for :func:`nearest_images`.
        batch_size: images per forward.

    Returns:
        (figures, nearest): by set its ``frechet`` distance and the median distance to the ``nearest`` image, and what
        :func:`nearest_images` found.
    """
    features = lambda images: pooled_features(judge, images, batch_size)
    known = features(reference)
    # One walk through the split serves all sets.
    found = nearest_images(torch.cat(list(sets.values())), split, mirrored=mirrored)
    nearest = dict(zip(sets, zip(*(part.split(len(part) // len(sets)) for part in found))))
    figures = {
        name: dict(frechet=frechet_distance(features(images), known), nearest=float(nearest[name][1].median()))
        for name, images in sets.items()
    }
    return figures, nearest


def agreement(judge: nn.Module, images: Tensor, label: Tensor | None, precision: str, batch_size: int) -> float | None:
    """Return the share of images that a judge classifies as the class [N] they were drawn from, if there is one."""
    if label is None or not classifies(judge):
        return None
    with evaluating(judge, precision):
        return accuracy(judge, images, label, batch_size)
