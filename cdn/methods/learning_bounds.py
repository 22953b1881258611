"""Errors that fall with the number of training images as ``b + v / n``: bounds, fits and crossings.

The form is that of figure 1 in Thiry & Guth, "Classification-Denoising Networks" (arXiv 2410.03505): a bias b that no
amount of data removes, and a variance v. Learning the joint distribution is to have the larger bias and the smaller
variance, learning the class alone the reverse, so that their curves cross once. Nothing in it says what b and v are:
here they are parameters, or fitted to measurements.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cdn.files import Results

Number = TypeVar("Number", float, np.ndarray)

# Two bounds by name, the n at which they cross, and the error there.
Crossing = tuple[str, str, float, float]
# Numbers of training images and measured values, arrays of one length, by objective.
Curves = dict[str, tuple[np.ndarray, np.ndarray]]
# Bias, variance and misfit, by objective.
Fits = dict[str, dict[str, float]]
OBJECTIVES = ("joint", "classification", "denoising")
MEASURES = {
    "error": "test error, clean images",
    "error_noisy": "test error, noisy images",
    "denoising_loss": "denoising loss (identity: 1)",
}


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


def crossings(curves: dict[str, Bound]) -> list[Crossing]:
    """Return (name, other, n, error) of every crossing among named bounds, ordered by n."""
    found = [(a, b, crossing(curves[a], curves[b])) for a, b in combinations(curves, 2)]
    return sorted(((a, b, n, curves[a](n)) for a, b, n in found if n is not None), key=lambda row: row[2])


def curves_of(rows: Iterable[Results], measure: str) -> Curves:
    """Return (n, values) of every objective that has the measure."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        # A classification-only model is never asked to denoise, and the class logits of a denoiser are untrained.
        measured = "classification" if measure == "denoising_loss" else "denoising"
        if row["objective"] != measured and row[measure] is not None:
            curves.setdefault(row["objective"], []).append((row["n"], row[measure]))
    return {
        objective: (np.array([n for n, _ in points], dtype=float), np.array([y for _, y in points], dtype=float))
        for objective, points in curves.items()
    }


def fits_of(rows: Iterable[Results], measure: str) -> Fits:
    """Return a fit of every curve with two sizes or more and no error of 0, which has no relative deviation."""
    fits = {}
    for objective, (n, values) in curves_of(rows, measure).items():
        if len(np.unique(n)) > 1 and values.min() > 0:
            bound, misfit = fit_bound(n, values)
            fits[objective] = dict(bound._asdict(), misfit=misfit)
    return fits


def crossings_of_fits(fits: Fits) -> list[dict[str, Any]]:
    """Return where the fits of one measure cross: dicts of first, second, n and value."""
    bounds = {objective: Bound(fit["bias"], fit["variance"]) for objective, fit in fits.items()}
    return [dict(first=a, second=b, n=n, value=value) for a, b, n, value in crossings(bounds)]
