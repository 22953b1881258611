"""Detectors of outliers, and measures of how well they separate them from inliers.

Each detector gives a number per image, greater for what looks more like the training. None of them is a calibrated
likelihood: score matching is blind to the relative weight of distant modes, so a detector is as good as its measured
separation, on those outliers, and no better.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from tqdm import tqdm

from cdn.errors import NotFiniteError
from cdn.model.density import score
from cdn_kernels import Noise, sample_noise
from cdn_kernels import reference as torch_ops

LOG_DENSITY, TYPICALITY, SCORE_NORM, SOFTMAX = "log density", "typicality", "score norm", "max softmax"


class Evidence(NamedTuple):
    """What :func:`gather` reads from a model, float64 [N] each, on the CPU; None where the model has none.

    Attributes:
        log_density: ``log p(y)`` up to a constant.
        score_norm: ``|grad_y log p(y)|``.
        confidence: ``max_c p(c | y)``.
    """

    log_density: Tensor | None
    score_norm: Tensor | None
    confidence: Tensor | None


class Separation(NamedTuple):
    """How well a detector tells two sets apart, each in [0, 1].

    Attributes:
        auroc: area under the ROC curve: the chance that a random inlier is rated above a random outlier; 0.5 for a
            detector that knows nothing, below it for one that prefers the outliers.
        aupr_in: average precision with the inliers as positives; a detector that knows nothing gets their share.
        aupr_out: average precision with the outliers as positives, ranked from the lowest rating.
        fpr95: the share of outliers that pass where at least 95 % of the inliers do: lower is better.
    """

    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95: float


def gather(
    model: nn.Module, y: Tensor, *, density: bool = True, classes: bool = True, batch_size: int = 256
) -> Evidence:
    """Return the outputs of a model that detectors need of images.

    Args:
        model: a classifier, or a model of log-densities.
        y: images [N, C, H, W].
        density: whether to read the log-density and its gradient; a plain classifier has none.
        classes: whether to read the confidence; a network that was not trained on classes has none.
        batch_size: images per forward.

    Returns:
        :class:`Evidence`.

    Raises:
        ValueError: density=True for a model that is no density.
    """
    log_density, score_norm, confidence = [], [], []
    # The layout that convolutions are fastest in.
    for part in y.contiguous(memory_format=torch.channels_last).split(batch_size):
        with torch.no_grad():
            logits = model(part).double()
        confidence.append(logits.softmax(1).amax(1))
        if density:
            log_density.append(torch_ops.logsumexp(logits))
            score_norm.append(score(model, part).double().flatten(1).norm(dim=1))
    join = lambda parts, wanted: torch.cat(parts).cpu() if wanted else None
    return Evidence(join(log_density, density), join(score_norm, density), join(confidence, classes))


def rate(evidence: Evidence, reference: Evidence) -> dict[str, Tensor]:
    """Rate images by every detector that the evidence allows.

    Args:
        evidence: :class:`Evidence` of the images to rate.
        reference: :class:`Evidence` of training images, at least two, at the same noise level.

    Returns:
        A dict from the names of detectors to ratings [N], greater for what looks more like the training:

        * "log density": ``log p(y)``.
        * "typicality": :func:`typicality`.
        * "score norm": ``-|grad_y log p(y)|``, the approximate mass of Grathwohl et al. ("Your classifier is secretly
          an energy based model", 2020). A blind network may well take an outlier for an image with more noise, whose
          score is smaller: it then prefers outliers.
        * "max softmax": ``max_c p(c | y)`` (Hendrycks & Gimpel, "A baseline for detecting misclassified and
          out-of-distribution examples", 2017).
    """
    ratings = {}
    if evidence.log_density is not None:
        # A density has a score too, and the reference was read from the same model.
        assert evidence.score_norm is not None and reference.log_density is not None
        ratings[LOG_DENSITY] = evidence.log_density
        ratings[TYPICALITY] = typicality(evidence.log_density, reference.log_density)
        ratings[SCORE_NORM] = -evidence.score_norm
    if evidence.confidence is not None:
        ratings[SOFTMAX] = evidence.confidence
    return ratings


def typicality(log_density: Tensor, reference: Tensor) -> Tensor:
    """Return ``-|log p(y) - m| / s`` for the mean m and deviation s of ``log p`` over training images.

    Outliers may well have a higher density than any image of the training: Nalisnick et al., "Detecting
    out-of-distribution inputs to deep generative models using typicality", 2019, here for sets of one image.

    Args:
        log_density: of the images to rate, [N].
        reference: of training images, at least two, at the same noise level, [M].

    Returns:
        [N], at most 0.
    """
    deviation, mean = torch.std_mean(reference)
    return -(log_density - mean).abs() / deviation


def separation(inliers: Tensor, outliers: Tensor) -> Separation:
    """Measure how well ratings tell inliers from outliers.

    Args:
        inliers, outliers: ratings [N] and [M], greater for what looks more like the training.

    Returns:
        :class:`Separation`. Both average precisions depend on N and M: compare sets of one size.

    Raises:
        ValueError: no ratings on one side.
        NotFiniteError: ratings that are not finite, as where all images of the training are alike.
    """
    for name, ratings in (("inliers", inliers), ("outliers", outliers)):
        lost = int((~ratings.isfinite()).sum())
        if ratings.dim() != 1 or len(ratings) == 0 or lost:
            raise (NotFiniteError if lost else ValueError)(
                f"{name}: expected finite ratings [N], N > 0, got {list(ratings.shape)} with {lost} not finite"
            )
    rated = torch.cat([inliers, outliers]).cpu().numpy()
    inside = torch.cat([torch.ones(len(inliers)), torch.zeros(len(outliers))]).numpy()
    # The lowest threshold that 95 % of the inliers reach, counted without interpolation.
    threshold = inliers.sort().values[len(inliers) - -(-95 * len(inliers) // 100)]
    return Separation(
        float(roc_auc_score(inside, rated)),
        float(average_precision_score(inside, rated)),
        float(average_precision_score(1 - inside, -rated)),
        float((outliers >= threshold).double().mean()),
    )


def separations(rated: dict[str, dict[str, Tensor]], inliers: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return by set and detector what :func:`separation` measures of ratings by set and detector.

    Args:
        rated: ratings [N] by the name of the set, and of the detector.
        inliers: the name of the set that the others are told from.
    """
    return {
        name: {key: separation(rated[inliers][key], values)._asdict() for key, values in detectors.items()}
        for name, detectors in rated.items()
        if name != inliers
    }


def rate_sets(
    model: nn.Module,
    sets: Mapping[str, Tensor],
    training: Tensor,
    sigma: float,
    noise: Noise,
    bar: tqdm | None = None,
    **how: Any,
) -> dict[str, dict[str, Tensor]]:
    """Rate sets of images under noise by every detector that a model allows: ratings [N] by set and detector.

    Args:
        model: a classifier, or a model of log-densities.
        sets: images [N, C, H, W] by name.
        training: training images [M, C, H, W], M of 2 or more.
        sigma: noise level, 0 for none.
        noise: a :class:`cdn.Noise` key; each set has one of its own, as pairs of images must not share their noise.
        bar: a tqdm bar to advance by the number of sets and 1.
        how: for :func:`gather`.
    """
    evidence = []
    for number, images in enumerate((training, *sets.values())):
        y, _ = sample_noise(images, sigma, noise.moved(number))
        evidence.append(gather(model, y, **how))
        if bar is not None:
            bar.update()
    return {name: rate(found, evidence[0]) for name, found in zip(sets, evidence[1:])}
