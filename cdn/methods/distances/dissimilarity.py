"""Measures of the dissimilarity of two images, by which reconstructions can be judged and searched.

A similarity is called with images x [N, C, H, W] and others r [N, ..., C, H, W], and returns their dissimilarity
[N, ...]: float64, 0 for equal images, differentiable by both. So it fits :func:`cdn.methods.synthesis.infer` as a
distance once it is in nats (:func:`in_nats`). Its ``matrix`` compares each image of one set with each of another.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdn.evaluation.metrics import ssim
from cdn.methods.quadrature import level_nodes
from cdn.methods.synthesis.inference import Distance, beside, pixel_distance
from cdn.model.capabilities import stage_features
from cdn.model.density import denoise
from cdn.noise_keys import SIMILARITY
from cdn_kernels import Noise, NoiseLevels
from cdn_kernels import reference as torch_ops

PIXELS, SSIM, FEATURES, INFORMATION = "pixels", "SSIM", "features", "information"
# Images that are embedded at once for a matrix.
BATCH = 64

# The key of the noise where none is given.
KEY = SIMILARITY.key(0)


class Similarity(Protocol):
    """What a similarity can do."""

    def __call__(self, x: Tensor, r: Tensor, /) -> Tensor:
        """Return the dissimilarity [N, ...] of images x [N, C, H, W] and others r [N, ..., C, H, W]."""

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the dissimilarity of each of a [N, C, H, W] and each of b [M, C, H, W], [N, M]."""


class Embedded:
    """Compare images by the squared distance of their embeddings.

    Args:
        embed: a function of images [B, C, H, W] that returns [B, D].
    """

    def __init__(self, embed: Callable[[Tensor], Tensor]) -> None:
        self.embed = embed

    def __call__(self, x: Tensor, r: Tensor) -> Tensor:
        """Return the dissimilarity [N, ...] of images x [N, C, H, W] and others r [N, ..., C, H, W]."""
        others = self.embed(r.flatten(0, -4)).view(*r.shape[:-3], -1)
        return (beside(self.embed(x), others) - others).square().sum(-1)

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the dissimilarity of each of a [N, C, H, W] and each of b [M, C, H, W], [N, M]."""
        a, b = (torch.cat([self.embed(part) for part in images.split(BATCH)]) for images in (a, b))
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


class Structural:
    """Compare images by ``1 - SSIM``, in [0, 2]: :func:`cdn.evaluation.metrics.ssim`, with its smaller windows."""

    def __call__(self, x: Tensor, r: Tensor) -> Tensor:
        """Return the dissimilarity [N, ...] of images x [N, C, H, W] and others r [N, ..., C, H, W]."""
        return 1 - ssim(beside(x, r).flatten(0, -4), r.flatten(0, -4)).view(r.shape[:-3])

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the dissimilarity of each of a [N, C, H, W] and each of b [M, C, H, W], [N, M]."""
        return torch.stack([self(a, other.expand_as(a)) for other in b], 1)


def pixels() -> Embedded:
    """Return the squared Euclidean distance of pixels."""
    return Embedded(lambda x: x.double().flatten(1))


def features(model: nn.Module) -> Embedded:
    """Return the distance of a classifier's features.

    After Zhang, Isola, Efros, Shechtman & Wang, "The unreasonable effectiveness of deep features as a perceptual
    metric" (2018), without their learned weights: the features of every stage, normalized over channels at each
    position; squared differences, averaged over positions, summed over stages. In [0, 4] per stage.

    Args:
        model: one of :mod:`cdn.model`. Its batch normalization, if it has any, takes the mode that it is in.
    """

    def embed(x: Tensor) -> Tensor:
        stages = [F.normalize(h.double(), dim=1) / math.sqrt(h[0, 0].numel()) for h in stage_features(model, x)]
        return torch.cat([h.flatten(1) for h in stages], 1)

    return Embedded(embed)


def information(
    model: nn.Module, levels: NoiseLevels = NoiseLevels(), *, nodes: int = 8, draws: int = 1, noise: Noise = KEY
) -> Embedded:
    """Return the square of the information-estimation distance, :func:`cdn.similarity`.

    Here all images get one and the same noise, so that any two can be compared and all are embedded once: by their
    denoising errors over levels. That is the distance of :func:`cdn.similarity` for single images.

    Args:
        model, levels, nodes, draws, noise: as for :func:`cdn.similarity`. Every evaluation costs ``nodes * draws``
            scores of both images.
    """

    def embed(x: Tensor) -> Tensor:
        parts = []
        for node, (sigma, weight) in enumerate(level_nodes(levels, nodes)):
            for draw in range(draws):
                key = noise.moved(node * draws + draw)
                y = x + sigma * torch_ops.standard_normal((1, *x.shape[1:]), key, x.dtype, x.device)
                graph = torch.is_grad_enabled() and x.requires_grad
                error = (denoise(model, y, sigma, create_graph=graph) - x).double()
                parts.append(math.sqrt(2 * weight / draws) / sigma * error.flatten(1))
        return torch.cat(parts, 1)

    return Embedded(embed)


def in_nats(similarity: Similarity, x: Tensor, r: Tensor, sigma: float | Tensor) -> Distance:
    """Return a similarity as a distance in nats, which :func:`cdn.methods.synthesis.infer` can weigh against latents.

    Args:
        similarity: of this module.
        x, r: training images [N, C, H, W] and their reconstructions, of the same shape: on these it will be on average
            what the pixel likelihood is.
        sigma: standard deviation of the pixels in that likelihood.
    """
    with torch.no_grad():
        scale = float(pixel_distance(sigma)(x, r).double().mean() / similarity(x, r).mean())
    return lambda x, r: scale * similarity(x, r)


def nearest_class(similarity: Similarity, x: Tensor, examples: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the dissimilarity of images and the most similar example of each class, [N, classes].

    Args:
        similarity: of this module.
        x: images [N, C, H, W].
        examples: images [M, C, H, W], at least one of every class.
        labels: their classes, int64 [M].
        classes: how many there are.

    Raises:
        ValueError: a class without examples.
    """
    missing = set(range(classes)) - set(labels.tolist())
    if missing:
        raise ValueError(f"labels: expected examples of every class, found none of class {min(missing)}")
    matrix = similarity.matrix(x, examples)
    return torch.stack([matrix[:, labels == c].amin(1) for c in range(classes)], 1)


def shifted(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] moved right by a pixel; the first column is repeated."""
    return F.pad(x, (1, 0, 0, 0), mode="replicate")[..., :-1]


def in_parts(similarity: Similarity, x: Tensor, r: Tensor, batch_size: int) -> Tensor:
    """Return the dissimilarity of images x and others r, computed for some images at a time."""
    return torch.cat([similarity(*pair) for pair in zip(x.split(batch_size), r.split(batch_size))])


def few_of_each(labels: Tensor, count: int) -> Tensor:
    """Return the indices of the first images of every class, at most count of each."""
    return torch.cat([(labels == c).nonzero()[:count, 0] for c in labels.unique()])
