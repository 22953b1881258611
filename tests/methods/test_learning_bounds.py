"""Bounds b + v / n: where they cross, and fits to measured errors."""

import numpy as np
import pytest

from cdn.methods.learning_bounds import Bound, crossing, fit_bound


def test_the_crossing_is_where_the_bounds_are_equal():
    generative, discriminative = Bound(0.1, 2.0), Bound(0.05, 20.0)
    n = crossing(generative, discriminative)
    assert n == pytest.approx((20 - 2) / (0.1 - 0.05)) == pytest.approx(crossing(discriminative, generative))
    assert generative(n) == pytest.approx(discriminative(n))
    assert generative(n / 2) < discriminative(n / 2) and generative(2 * n) > discriminative(2 * n)


@pytest.mark.parametrize(
    "first, second",
    [
        (Bound(0.1, 2.0), Bound(0.1, 3.0)),
        (Bound(0.1, 2.0), Bound(0.1, 2.0)),
        (Bound(0.1, 2.0), Bound(0.2, 2.0)),
        (Bound(0.1, 2.0), Bound(0.2, 3.0)),
    ],
    ids=["parallel", "equal", "one variance", "smaller in both"],
)
def test_bounds_that_never_cross(first, second):
    assert crossing(first, second) is None and crossing(second, first) is None


@pytest.mark.parametrize("bound", [Bound(0.05, 20.0), Bound(0.3, 0.0), Bound(0.0, 7.0)])
def test_a_fit_recovers_what_made_the_errors(bound):
    n = np.array([100, 300, 1000, 3000, 50000])
    fitted, misfit = fit_bound(n, bound(n))
    assert fitted == pytest.approx(bound, rel=1e-9, abs=1e-9) and misfit < 1e-9


def test_a_fit_of_scattered_errors():
    rng = np.random.default_rng(0)
    n = np.repeat([100, 1000, 10000], 40)
    bound = Bound(0.05, 20.0)
    fitted, misfit = fit_bound(n, bound(n) * (1 + 0.1 * rng.standard_normal(len(n))))
    assert fitted == pytest.approx(bound, rel=0.05) and misfit == pytest.approx(0.1, rel=0.2)


def test_bias_and_variance_are_not_negative():
    """Errors that fall faster than 1/n, or grow, get the best of the allowed curves."""
    n = np.array([10.0, 100.0, 1000.0])
    assert fit_bound(n, 1 / n**2)[0].bias == 0
    growing, misfit = fit_bound(n, np.array([0.1, 0.2, 0.3]))
    assert growing.variance == 0 and misfit > 0.1
    # The best constant for relative deviations, by a search of its own.
    constants = np.linspace(0.1, 0.3, 20001)
    best = constants[np.argmin(((constants[:, None] / np.array([0.1, 0.2, 0.3]) - 1) ** 2).sum(1))]
    assert growing.bias == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(
    "n, errors, message",
    [
        ([100, 100], [0.1, 0.2], "at least two different n"),
        ([100, 200], [0.1], "one error per n"),
        ([100, 200], [0.1, 0.0], "positive finite numbers"),
        ([0, 200], [0.1, 0.2], "positive finite numbers"),
        ([100, 200], [0.1, float("nan")], "positive finite numbers"),
    ],
)
def test_what_cannot_be_fitted(n, errors, message):
    with pytest.raises(ValueError, match=message):
        fit_bound(n, errors)
