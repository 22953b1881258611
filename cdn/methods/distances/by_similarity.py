"""Classification by a similarity: of reconstructions, searched or given, or of training images."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cdn.methods.distances.dissimilarity import (
    FEATURES,
    INFORMATION,
    PIXELS,
    SSIM,
    Similarity,
    Structural,
    features,
    few_of_each,
    in_nats,
    in_parts,
    information,
    nearest_class,
    pixels,
)
from cdn.methods.synthesis import ClassGenerators, Inference, infer
from cdn.model.finite import decided

NAMES = PIXELS, SSIM, FEATURES, INFORMATION
JUDGED, SEARCHED, NEIGHBOUR = "judged", "searched", "neighbour"
# Accuracies by way, similarity and kind of image.
Shares = dict[str, dict[str, dict[str, float]]]


def all_similarities(classifier: nn.Module, model: nn.Module, **how: Any) -> dict[str, Similarity]:
    """Return every similarity by name: features are those of a classifier, information that of a denoiser.

    Args:
        classifier: a model with classes.
        model: a model of log-densities.
        how: levels, nodes and noise, of :func:`cdn.methods.distances.dissimilarity.information`.
    """
    kinds = (pixels(), Structural(), features(classifier), information(model, **how))
    return dict(zip(NAMES, kinds))


def accuracies(
    similarities: Iterable[tuple[str, Similarity]],
    generators: ClassGenerators,
    kinds: Mapping[str, Tensor],
    truth: Tensor,
    training: Tensor,
    labels: Tensor,
    *,
    searched: Collection[str],
    examples: int,
    search: dict[str, Any],
    batch_size: int,
) -> tuple[Shares, dict[str, Inference]]:
    """Return accuracies by way, similarity and kind of image, and what was reconstructed of each kind, by pixels.

    Args:
        similarities: by name.
        generators: one of each class.
        kinds: test images [N, C, H, W] by what was done to them.
        truth: their classes [N].
        training, labels: training images and their classes.
        searched: names of the similarities to search by.
        examples: training images of each class that are neighbours.
        search: for :func:`cdn.methods.synthesis.infer`.
        batch_size: images at once.
    """
    found = {kind: infer(generators, images, **search) for kind, images in kinds.items()}
    chosen = few_of_each(labels, examples)
    near, classes = training[chosen], labels[chosen]
    # What a similarity is in nats is read from training images and the reconstructions of their own classes.
    own = infer(generators, near, **search).reconstructions[range(len(chosen)), classes]
    shares: Shares = {way: {} for way in (JUDGED, SEARCHED, NEIGHBOUR)}
    right = lambda values: float((decided(values) == truth).double().mean())
    with torch.no_grad():
        for name, similarity in similarities:
            judged = lambda kind, x: -in_parts(similarity, x, found[kind].reconstructions, batch_size)
            neighbour = lambda kind, x: -nearest_class(similarity, x, near, classes, generators.classes)
            ways = {JUDGED: judged, NEIGHBOUR: neighbour}
            if name in searched:
                distance = in_nats(similarity, near, own, generators.sigma.detach())
                ways[SEARCHED] = lambda kind, x: infer(generators, x, distance, batch_size=batch_size, **search).bound
            for way, logits in ways.items():
                shares[way][name] = {kind: right(logits(kind, images)) for kind, images in kinds.items()}
    return shares, found
