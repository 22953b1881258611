"""Errors that fall with the number of training images as ``b + v / n``: bounds, fits and crossings.

The form is that of figure 1 in Thiry & Guth, "Classification-Denoising Networks" (arXiv 2410.03505): a bias b that no
amount of data removes, and a variance v. Learning the joint distribution is to have the larger bias and the smaller
variance, learning the class alone the reverse, so that their curves cross once. Nothing in it says what b and v are:
here they are parameters, or fitted to measurements.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Number = TypeVar("Number", float, np.ndarray)


class Bound(NamedTuple):
    """The curve ``b + v / n`` of an error against the number n of training images.

    Attributes:
        bias: b, the error left at n = infinity.
        variance: v, the error in excess of b at n = 1.
    """

    bias: float
    variance: float

    def __call__(self, n: Number) -> Number:
        """Return ``b + v / n`` for a number or array n > 0."""
        return self.bias + self.variance / n


def crossing(first: Bound, second: Bound) -> float | None:
    """Return the number of training images at which two bounds are equal, ``(v_2 - v_1) / (b_1 - b_2)``.

    Args:
        first, second: :class:`Bound`; their order does not matter.

    Returns:
        n > 0, or None where the curves never cross: equal biases (one lies above the other, or they are one curve),
        equal variances, or one bound that is smaller in both.
    """
    bias, variance = first.bias - second.bias, second.variance - first.variance
    return variance / bias if bias * variance > 0 else None


def fit_bound(n: Sequence[float] | np.ndarray, errors: Sequence[float] | np.ndarray) -> tuple[Bound, float]:
    """Fit ``b + v / n`` with b, v >= 0 to measured errors, by least squares of the relative deviations.

    Relative, because errors span decades: absolute squares would leave the large n, where b shows, without a say.

    Args:
        n: numbers of training images, at least two different ones, all positive.
        errors: positive errors, one per n; repeated n are welcome.

    Returns:
        (bound, misfit): a :class:`Bound` and the root mean square of ``(b + v / n) / error - 1``. A misfit above the
        scatter of the repeats says that the errors do not fall as 1/n, and that neither b nor crossings mean much.

    Raises:
        ValueError: fewer than two different n, or values that are not positive.
    """
    n, errors = np.asarray(n, dtype=float), np.asarray(errors, dtype=float)
    if n.shape != errors.shape or n.ndim != 1 or len(np.unique(n)) < 2:
        raise ValueError(
            f"n, errors: expected one error per n and at least two different n, got {n.tolist()} and {errors.tolist()}"
        )
    if not (np.all(n > 0) and np.all(errors > 0) and np.all(np.isfinite(errors))):
        raise ValueError(f"n, errors: expected positive finite numbers, got {n.tolist()} and {errors.tolist()}")
    columns = np.stack([1 / errors, 1 / (n * errors)], 1)
    both = np.linalg.lstsq(columns, np.ones_like(n), rcond=None)[0]
    # With two unknowns the best of those that are not negative is the free one, or lies on one of the two axes.
    axes = [np.where(np.arange(2) == k, c.sum() / (c @ c), 0.0) for k, c in enumerate(columns.T)]
    candidates = [both] if both.min() >= 0 else axes
    misfit, best = min(((float(np.sqrt(np.mean((columns @ c - 1) ** 2))), c) for c in candidates), key=lambda p: p[0])
    return Bound(float(best[0]), float(best[1])), misfit
