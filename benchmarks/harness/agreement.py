"""The gate before a comparison: do peers compute what the library computes?"""

import torch

from benchmarks.harness.workers import Worker


def agreement(library, tolerance):
    """Return a function (name of a peer, the peer) that says how its values differ from the library's, or None.

    What does not do the same thing, named in parentheses, is not compared.

    Args:
        library: a function that returns tensors, or a :class:`.workers.Worker`, whose ``result()`` counts.
        tolerance: of the norm of each; workers may bring a wider one, which their docstring explains.
    """
    expected = []

    def agree(name, peer):
        if name.startswith("("):
            return None
        if not expected:
            library()
            expected.extend(_values(library))
        allowed = (isinstance(peer, Worker) and peer.tolerance()) or tolerance
        for a, b in zip(expected, _values(peer), strict=True):
            error = float((b - a).norm() / a.norm())
            if not error <= allowed:
                return f"values differ by {error:.2g} of their norm, {allowed:g} allowed"
        return None

    return agree


def _values(case):
    tensors = [torch.from_numpy(case.result())] if isinstance(case, Worker) else case()
    return [t.detach().double() for t in tensors]
