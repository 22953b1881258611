"""Bounds and tests of binomial counts against those of scipy."""

import pytest
from scipy import stats

from cdn.methods.smoothing.binomial import differs_from_fair, fewest_for_majority, lower_bound, upper_tail


@pytest.mark.parametrize("n", [1, 2, 10, 100, 999, 10_000, 100_000])
@pytest.mark.parametrize("alpha", [1e-9, 0.001, 0.05, 0.5, 0.9])
def test_the_lower_bound_is_a_quantile_of_the_beta_distribution(n, alpha):
    for k in sorted({1, n // 3 + 1, n // 2 + 1, 9 * n // 10 + 1, n - 1, n} - {0, n + 1}):
        assert lower_bound(k, n, alpha) == pytest.approx(stats.beta.ppf(alpha, k, n - k + 1), rel=1e-12, abs=1e-12)
    assert lower_bound(0, n, alpha) == 0


def test_the_lower_bound_is_that_of_an_exact_confidence_interval():
    interval = stats.binomtest(90, 100, alternative="greater").proportion_ci(0.999, method="exact")
    assert lower_bound(90, 100, 0.001) == pytest.approx(interval.low, abs=1e-12)


@pytest.mark.parametrize(
    "k, n, p",
    [
        (0, 5, 0.2),
        (5, 5, 0.2),
        (3, 5, 0.9),
        (40, 100, 0.5),
        (60, 100, 0.5),
        (2, 9, 0.0),
        (2, 9, 1.0),
        (51_000, 100_000, 0.5),
        (700, 1000, 0.01),
    ],
)
def test_tails(k, n, p):
    assert upper_tail(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("n", [1, 9, 10, 11, 100, 301])
@pytest.mark.parametrize("alpha", [0.001, 0.1, 0.4])
def test_the_fewest_successes_that_show_a_majority(n, alpha):
    enough = [k for k in range(n + 1) if lower_bound(k, n, alpha) > 0.5]
    assert fewest_for_majority(n, alpha) == (enough[0] if enough else None)


@pytest.mark.parametrize("a, b", [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (60, 40), (600, 500), (8, 0)])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_test_of_equal_odds(a, b, alpha):
    expected = stats.binomtest(a, a + b, 0.5).pvalue <= alpha if a + b else False
    assert differs_from_fair(a, b, alpha) == expected


@pytest.mark.parametrize(
    "k, n, alpha, sentence",
    [
        (3, 2, 0.1, "k=3, n=2"),
        (-1, 2, 0.1, "k=-1"),
        (0, 0, 0.1, "n=0"),
        (1, 2, 0.0, "alpha must be in"),
        (1, 2, 1.0, "got 1.0"),
    ],
)
def test_bad_counts_are_refused(k, n, alpha, sentence):
    with pytest.raises(ValueError, match=sentence):
        lower_bound(k, n, alpha)
