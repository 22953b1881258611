"""Randomized smoothing: a majority vote under Gaussian noise, and the L2 radius within which it provably stays.

After Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via randomized smoothing" (2019). The smoothed
classifier ``g(x) = argmax_c P(f(x + sigma eps) = c)`` of any base classifier f is constant within
``sigma Phi^-1(p)`` of x in L2 (their theorem 1, with the second class bounded by 1 - p), where p bounds the probability
of its top class from below. A classification-denoising network was trained on Gaussian noise, so it is its own base
classifier: one forward per sample. Images are in [0, 1], sigma and radii in the same units, radii over all values of an
image.
"""

import warnings
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from tqdm import tqdm

import cdn_kernels
from cdn.methods.smoothing.binomial import check_alpha, differs_from_fair, fewest_for_majority, lower_bound
from cdn.model import capabilities
from cdn.model.finite import UNDECIDED, decided
from cdn.model.inputs import check_counts, check_floating, check_sigma
from cdn.model.modes import evaluating
from cdn.noise_keys import CERTIFICATION
from cdn_kernels import Noise
from cdn_kernels.transforms import transformed

ABSTAIN = UNDECIDED
# Noise is drawn for this many samples at a time, so that sample j of image i is the same whatever the batch size.
CHUNK = 256
# Each image has so many positions, by the power of two.
_IMAGE_BITS = 24
# Of the chunks of an image, the second half is for the estimate: no draw chooses the class and counts for it too.
_SELECTION, _ESTIMATION = 0, 1 << (_IMAGE_BITS - 1)


class Certificate(NamedTuple):
    """What :func:`certify` found, one value per image.

    Attributes:
        label: int64 [B], the certified class, or -1 where it abstains.
        radius: float64 [B], in L2 and in units of the images; 0 where it abstains.
        lower: float64 [B], the lower confidence bound on the probability of the class that was guessed; 0 where
            sampling stopped before it was known.
        draws: int64 [B], forwards that it took, those of the guess included.
    """

    label: Tensor
    radius: Tensor
    lower: Tensor
    draws: Tensor


def certify(
    model: nn.Module,
    x: Tensor,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    *,
    batch_size: int = CHUNK,
    seed: int = 0,
    first: int = 0,
    precision: str = "float32",
    progress: bool = False,
) -> Certificate:
    """Classify images by a vote under noise, with a radius within which the vote provably does not change.

    CERTIFY of Cohen et al. (2019): n0 draws guess the class, n others bound its probability from below by
    Clopper-Pearson. A label and its radius are both right with probability 1 - alpha or more over the draws, for each
    image by itself.

    Sampling of an image stops where the remaining draws could not lift it from abstention: the verdict is the one that
    all n draws would have given, so the guarantee stands. Nothing else stops it: a radius taken as soon as it looks
    large enough would need a bound that holds at all times at once.

    A draw whose logits are not finite votes for no class: an image for which they win has no certificate.

    Args:
        model: a module that gives logits [B, classes] for images [B, C, H, W]: a :class:`cdn.GradResNet`, any other
            classifier, or :class:`cdn.Protected`. The certificate is one of its smoothed version, at its precision.
        x: images [B, C, H, W] in [0, 1], on the device of the model, without noise.
        sigma: noise level, a number above 0.
        n0, n: draws that guess and that estimate, at least 1.
        alpha: probability of error, in (0, 1).
        batch_size: samples per forward; more than 256 has no effect. The noise does not depend on it.
        seed: of the noise, which is independent for every image and sample; equal normals serve every sigma.
        first: index of x[0], by which its noise is named: parts of a set give what the whole does.
        precision: "float32", or "bf16" for a forward under autocast.
        progress: show a progress bar on stderr.

    Returns:
        :class:`Certificate`, on the CPU. No radius exceeds :func:`largest_radius`.

    Raises:
        ValueError: an argument out of range, or a model without classes.
        RuntimeError: a torch.func transform or forward-mode differentiation is active.

    Warns:
        UserWarning: n is too small for alpha, so that every image will abstain.
    """
    _check(model, x, sigma, alpha, n0=n0, n=n, batch_size=batch_size)
    needed = _needed(n, alpha)
    rows = []
    with (
        torch.no_grad(),
        evaluating(model, precision),
        tqdm(total=len(x) * (n0 + n), unit="sample", unit_scale=True, leave=False, disable=not progress) as bar,
    ):
        for index, image in enumerate(x, first):
            votes = lambda count, part: _votes(model, image, sigma, count, _key(seed, index, part), batch_size, bar)
            guess = int(_tally(votes(n0, _SELECTION)).argmax()) + UNDECIDED
            rows.append(_estimate(votes(n, _ESTIMATION), guess, n, needed, alpha, sigma, n0))
            bar.update(n0 + n - rows[-1][-1])  # what was not needed
    kinds = (torch.int64, torch.float64, torch.float64, torch.int64)
    return Certificate(*(torch.tensor(column, dtype=kind) for column, kind in zip(list(zip(*rows)) or [()] * 4, kinds)))


def predict_smoothed(
    model: nn.Module,
    x: Tensor,
    sigma: float,
    n: int = 1000,
    alpha: float = 0.001,
    *,
    batch_size: int = CHUNK,
    seed: int = 0,
    first: int = 0,
    precision: str = "float32",
) -> Tensor:
    """Return the class of the smoothed classifier for each image, int64 [B] on the CPU, or -1 where a vote is close.

    PREDICT of Cohen et al. (2019), after Hung & Fithian: the top class is returned where an exact two-sided test
    rejects equal odds of the two top classes; it is another than that of the smoothed classifier with probability alpha
    at most. As for :func:`certify`, a draw whose logits are not finite votes for no class.

    Args, raises: as for :func:`certify`, with draws of its own.
    """
    _check(model, x, sigma, alpha, n=n, batch_size=batch_size)
    labels = []
    with torch.no_grad(), evaluating(model, precision):
        for index, image in enumerate(x, first):
            counts = _tally(_votes(model, image, sigma, n, _key(seed, index, _SELECTION), batch_size))
            (top, second), bins = counts.topk(2)
            labels.append(int(bins[0]) + UNDECIDED if differs_from_fair(int(top), int(second), alpha) else ABSTAIN)
    return torch.tensor(labels, dtype=torch.int64)


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """Return the radius where all n draws agree, ``sigma Phi^-1(alpha^(1/n))`` or 0: no certificate can exceed it."""
    return max(0.0, sigma * NormalDist().inv_cdf(lower_bound(n, n, alpha)))


def certified_accuracy(labels: ArrayLike, predicted: ArrayLike, radii: ArrayLike, radius: ArrayLike) -> np.ndarray:
    """Return the share of images that are classified rightly with a certificate of at least so large a radius.

    Args:
        labels: int [N], the true classes.
        predicted: int [N], those of the certificates, -1 for abstention.
        radii: float [N], of the certificates.
        radius: a number, or an array [R].

    Returns:
        A share in [0, 1] for each radius. At 0 it is the accuracy of the smoothed classifier, abstentions being errors.
    """
    right = np.where(np.equal(labels, predicted), radii, -np.inf)
    return (right >= np.expand_dims(radius, -1)).mean(-1)


def certified_shares(
    model: nn.Module, x: Tensor, labels: Tensor, sigma: float, radii: Sequence[float], **how: Any
) -> dict[str, float | None]:
    """Certify images, and return the certified accuracies by radius, None where the draws cannot reach it.

    Args:
        model, x, sigma: as for :func:`cdn.certify`.
        labels: the true classes, int64 [N].
        radii: where to count.
        how: n0, n, alpha and others of :func:`cdn.certify`.
    """
    found = certify(model, x, sigma, **how)
    shares = certified_accuracy(labels.cpu().numpy(), found.label.numpy(), found.radius.numpy(), radii)
    reach = largest_radius(sigma, how["n"], how["alpha"])
    return {f"{radius:g}": float(share) if radius <= reach else None for radius, share in zip(radii, shares)}


def _needed(n: int, alpha: float) -> int | None:
    """Return how many of n votes show a majority; None, with a warning, where not even all of them do."""
    needed = fewest_for_majority(n, alpha)
    if needed is None:
        warnings.warn(
            f"certify: n = {n} draws cannot show a majority at alpha = {alpha:g}, for 1 / 2^{n} is not below "
            "it: every image will abstain",
            stacklevel=3,
        )
    return needed


def _estimate(
    votes: Iterator[Tensor], guess: int, n: int, needed: int | None, alpha: float, sigma: float, n0: int
) -> tuple[int, float, float, int]:
    """Return the fields of one image's :class:`Certificate`."""
    hits = draws = 0
    if guess == UNDECIDED:
        return ABSTAIN, 0.0, 0.0, n0
    for counts in votes:
        hits, draws = hits + int(counts[guess - UNDECIDED]), draws + int(counts.sum())
        if needed is None or hits + n - draws < needed:
            return ABSTAIN, 0.0, 0.0, n0 + draws
    lower = lower_bound(hits, n, alpha)
    return guess, sigma * NormalDist().inv_cdf(lower), lower, n0 + draws


def _votes(
    model: nn.Module, image: Tensor, sigma: float, count: int, key: Noise, batch_size: int, bar: tqdm | None = None
) -> Iterator[Tensor]:
    """Yield how often nothing is decided and how often each class wins, int64 [1 + classes], under draws of noise."""
    for chunk, start in enumerate(range(0, count, CHUNK)):
        # Convolutions are fastest in this layout; the values of the noise do not depend on it.
        copies = image.expand(min(CHUNK, count - start), *image.shape).contiguous(memory_format=torch.channels_last)
        noisy, _ = cdn_kernels.sample_noise(copies, sigma, key.moved(chunk))
        for part in noisy.split(batch_size):
            logits = model(part)
            if bar is not None:
                bar.update(len(part))
            yield torch.bincount(decided(logits) - UNDECIDED, minlength=logits.shape[1] + 1).cpu()


def _tally(votes: Iterator[Tensor]) -> Tensor:
    """Return the sum of all batches of votes, int64 [1 + classes]."""
    return torch.stack(list(votes)).sum(0)


def _key(seed: int, index: int, part: int) -> Noise:
    return CERTIFICATION.key(seed, (index << _IMAGE_BITS) + part)


def _check(model: nn.Module, x: Tensor, sigma: float, alpha: float, **counts: int) -> None:
    if transformed():
        raise RuntimeError(
            "certificates count votes, which torch.func transforms and forward-mode differentiation cannot follow: "
            "differentiate the classifier, or cdn.Protected"
        )
    if not capabilities.classifies(model):
        raise ValueError(f"model: expected one that classifies, got {capabilities.kind(model)}")
    if x.dim() != 4:
        raise ValueError(f"x must be images [B, C, H, W], got {list(x.shape)}")
    check_floating(x, "x")
    check_sigma(sigma)
    check_counts(**counts)
    check_alpha(alpha)
