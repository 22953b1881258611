"""The Gauss-Legendre rule over noise levels."""

import math

import numpy as np

from cdn_kernels import NoiseLevels


def level_nodes(levels: NoiseLevels, count: int) -> list[tuple[float, float]]:
    """Return the nodes and weights of the Gauss-Legendre rule in log sigma.

    Args:
        levels: :class:`cdn.NoiseLevels`, of which only low and high count: the ends of the integral.
        count: of nodes, at least 1. The rule is exact for polynomials in log sigma of degree 2 count - 1.

    Returns:
        A list of (sigma, weight), sigma rising; the weights sum to ``log(high / low)``.
    """
    low, high = math.log(levels.low), math.log(levels.high)
    points, weights = np.polynomial.legendre.leggauss(count)
    return [
        (math.exp((low + high + (high - low) * point) / 2), (high - low) / 2 * float(weight))
        for point, weight in zip(points, weights)
    ]
