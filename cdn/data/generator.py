"""Random generators that are seeded by the numbers that name them, and by nothing else."""

import numpy as np
import torch

from cdn.errors import DataError


def keyed_generator(stream: str, seed: int, position: int) -> torch.Generator:
    """Return a fresh CPU generator for one position of one stream.

    Neighbouring seeds and positions get unrelated states, and streams of different names share none: the run
    can be resumed anywhere without a generator's state on disk.

    Raises:
        DataError: `seed` or `position` is negative.
    """
    if seed < 0 or position < 0:
        raise DataError(f"{stream}: expected a seed and a step of at least 0, got {seed} and {position}")
    key = np.random.SeedSequence([int.from_bytes(stream.encode(), "little"), seed, position])
    return torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0]))
