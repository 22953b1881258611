"""Certified accuracy at a radius."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cdn.methods.smoothing.certificate import certify, largest_radius


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
