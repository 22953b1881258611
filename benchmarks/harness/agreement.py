"""The gate before a comparison: do peers compute what the library computes?"""

import math

import torch

from benchmarks.harness.workers import Worker

FARTHEST = 3  # tolerances that rounding alone may decide


def agreement(library, tolerance, exact=None):
    """Return a function (name of a peer, the peer) that says how its values differ from the library's, or None.

    What does not do the same thing, named in parentheses, is not compared. Where rounding decides more than the
    tolerance, as bfloat16 does on small images, library and peer are held against exact values: each may be at most
    twice as far from them as the other, and neither farther than FARTHEST tolerances.

    Args:
        library: a function that returns tensors, or a :class:`.workers.Worker`, whose ``result()`` counts.
        tolerance: of the norm of each; workers may bring a wider one, which their docstring explains.
        exact: a function that returns such a function or worker, of a wider type; None where rounding decides nothing.
    """
    expected, truth = [], []

    def agree(name, peer):
        if name.startswith("("):
            return None
        if not expected:
            library()
            expected.extend(_values(library))
        allowed = (isinstance(peer, Worker) and peer.tolerance()) or tolerance
        values = _values(peer)
        error = _distance(values, expected)
        if error <= allowed:
            return None
        differ = f"values differ by {error:.2g} of their norm, {allowed:g} allowed"
        if exact is None:
            return differ
        if not truth:
            case = exact()
            case()
            truth.extend(_values(case))
        own, its = _distance(expected, truth), _distance(values, truth)
        if max(own, its) <= FARTHEST * allowed and max(own, its) <= 2 * min(own, its):
            return None
        return f"{differ}; from exact values the library's by {own:.2g}, its by {its:.2g}"

    return agree


def _distance(values, expected):
    """Return the largest difference of tensors, of the norm of what is expected; nan counts as infinite."""
    errors = [float((b - a).norm() / a.norm()) for a, b in zip(expected, values, strict=True)]
    return max(error if error == error else math.inf for error in errors)


def _values(case):
    tensors = [torch.from_numpy(case.result())] if isinstance(case, Worker) else case()
    return [t.detach().double() for t in tensors]
