"""Metrics of denoised images and of predicted probabilities."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cdn.model.finite import require_finite

WINDOW, WINDOW_SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image, ``-10 log10 mean (a - b)^2``.

    Args:
        a, b: images [B, ...] in units where the peak is 1; nothing is clipped.

    Returns:
        float64 [B] in dB; inf for identical images.

    Raises:
        ValueError: different shapes.
    """
    _check_pair("psnr", a, b)
    return -10 * (a.double() - b.double()).square().flatten(1).mean(1).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity of each image, averaged over pixels and channels.

    After Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004):
    Gaussian window of 11x11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03, only windows that lie inside the
    image.

    Args:
        a, b: images [B, C, H, W] in units where the peak is 1; nothing is clipped.

    Returns:
        float64 [B], 1 for identical images.

    Raises:
        ValueError: different shapes.

    Limitations: where an image is smaller than 11 pixels, so is the window: min(11, H) x min(11, W). Such
    values compare models on the same images, and with nothing else.
    """
    _check_pair("ssim", a, b)
    a, b = a.double(), b.double()
    # The window is separable: two small banded matrices average over rows and over columns.
    rows, columns = _averages(a.shape[2], a.device), _averages(a.shape[3], a.device).T
    mean_a, mean_b, aa, bb, ab = (rows @ m @ columns for m in (a, b, a * a, b * b, a * b))
    product, squares = mean_a * mean_b, mean_a.square() + mean_b.square()
    luminance = (2 * product + K1**2) / (squares + K1**2)
    structure = (2 * (ab - product) + K2**2) / (aa + bb - squares + K2**2)
    return (luminance * structure).flatten(1).mean(1)


class Reliability(NamedTuple):
    """Compare confidence with accuracy in bins of equal width over [0, 1].

    Attributes:
        count: int64 [bins], images whose top probability lies in the bin (lower edge excluded).
        confidence: float64 [bins], their mean top probability; 0 in an empty bin.
        accuracy: float64 [bins], the fraction of them that is classified rightly; 0 in an empty bin.
    """

    count: Tensor  # type: ignore[assignment]  # the method of tuples that it hides is not missed
    confidence: Tensor
    accuracy: Tensor

    def error(self) -> float:
        """Return the expected calibration error, the mean of ``|accuracy - confidence|`` over images."""
        gap = (self.accuracy - self.confidence).abs()
        return float((self.count * gap).sum() / self.count.sum())


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Sort predictions into bins by their top probability.

    Args:
        probabilities: [N, classes], N > 0; rows sum to 1.
        labels: int64 [N].
        bins: number of bins.

    Returns:
        :class:`Reliability`.

    Raises:
        NotFiniteError: probabilities that are not finite, which belong into no bin.
    """
    require_finite(probabilities, "probabilities: expected finite ones, got nan or infinity for some images")
    confidence, predicted = probabilities.double().max(1)
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(index, minlength=bins)
    total = lambda values: torch.bincount(index, values.double(), minlength=bins) / count.clamp(min=1)
    return Reliability(count, total(confidence), total(predicted == labels))


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al., "On calibration of modern neural networks", 2017).

    Args:
        probabilities: [N, classes], N > 0; rows sum to 1.
        labels: int64 [N].
        bins: number of bins of equal width.

    Returns:
        A float in [0, 1].
    """
    return reliability(probabilities, labels, bins).error()


def _averages(size: int, device: torch.device) -> Tensor:
    """Return the matrix [positions, size] whose rows are the window at every position."""
    length = min(WINDOW, size)
    offset = torch.arange(length, device=device, dtype=torch.float64) - (length - 1) / 2
    window = torch.exp(-0.5 * (offset / WINDOW_SIGMA).square())
    positions = size - length + 1
    matrix = torch.zeros(positions, size, device=device, dtype=torch.float64)
    for k, weight in enumerate(window / window.sum()):
        matrix.diagonal(k).copy_(weight.expand(positions))
    return matrix


def _check_pair(name: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{name}: expected two batches of one shape, got {list(a.shape)} and {list(b.shape)}")


def mean_and_error(values: Tensor) -> list[float]:
    """Return [mean, standard error] of values [N], one per image; nan where there are not enough of them."""
    return [float(values.mean()), float(values.std()) / math.sqrt(max(len(values), 1))]
