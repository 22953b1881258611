"""Exact confidence bounds and tests of binomial counts.

Everything here is in float64 and on numbers, without tables or approximations by normals.
"""

import math


def upper_tail(k: int, n: int, p: float) -> float:
    """Return ``P(X >= k)`` for a binomial X of n draws with probability p.

    Args:
        k: 0 <= k <= n.
        n: number of draws.
        p: in [0, 1].

    Limitations: the relative error is that of ``lgamma``, about 1e-16 n log n.
    """
    if k <= 0 or p >= 1:
        return 1.0
    if p <= 0:
        return 0.0
    if k <= n * p:
        # The other tail, whose terms shrink from its end on.
        return 1.0 - _tail(n - k + 1, n, 1.0 - p)
    return _tail(k, n, p)


def lower_bound(k: int, n: int, alpha: float) -> float:
    """Return the lower bound of Clopper and Pearson (1934): with probability 1 - alpha or more, p is above it.

    The p at which k or more successes in n draws would have the probability alpha; equal to the alpha quantile of a
    beta distribution with parameters k and n - k + 1. One-sided, found by bisection to the last digits of a float.

    Args:
        k: successes, 0 <= k <= n.
        n: draws, at least 1.
        alpha: the probability of error, in (0, 1).

    Raises:
        ValueError: an argument out of range.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"lower_bound: expected counts 0 <= k <= n with n of at least 1, got k={k}, n={n}")
    check_alpha(alpha)
    if k == 0:
        return 0.0
    if k == n:
        return alpha ** (1 / n)
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if upper_tail(k, n, middle) < alpha else (low, middle)
    return low


def fewest_for_majority(n: int, alpha: float) -> int | None:
    """Return the smallest k whose :func:`lower_bound` exceeds 1/2, or None if even k = n does not reach it.

    Args:
        n: draws, at least 1.
        alpha: the probability of error, in (0, 1).
    """
    # The bound exceeds 1/2 exactly where k or more heads of a fair coin are less likely than alpha.
    low, high = n // 2, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if upper_tail(middle, n, 0.5) < alpha else (middle, high)
    return high if high <= n and upper_tail(high, n, 0.5) < alpha else None


def differs_from_fair(a: int, b: int, alpha: float) -> bool:
    """Tell whether a and b successes of two outcomes contradict equal odds: the exact two-sided test at level alpha."""
    return min(1.0, 2 * upper_tail(max(a, b), a + b, 0.5)) <= alpha


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless alpha is a probability of error, in (0, 1)."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")


def _tail(k: int, n: int, p: float) -> float:
    """Sum the terms from k on, which shrink: k > n p."""
    odds = p / (1.0 - p)
    total = term = 1.0
    for j in range(k, n):
        term *= (n - j) / (j + 1) * odds
        total += term
        if term < 1e-17 * total:
            break
    log_first = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    )
    return math.exp(log_first) * total
