"""The joint step from small networks to large ones: the library must not lose where computing is the smaller part."""

import pytest

from benchmarks.steps import EAGER, KEPT, Step

# Width, images of a batch, side of the images. The first is that of a smoke run, and of the default.
SIZES = [
    (8, 1, 8),
    (8, 16, 8),
    (8, 64, 8),
    (8, 256, 8),
    (8, 1, 32),
    (8, 16, 32),
    (8, 256, 32),
    (16, 1, 16),
    (16, 4, 16),
    (16, 64, 16),
    (32, 1, 8),
    (32, 1, 32),
    (32, 16, 16),
    (32, 64, 32),
    (32, 4, 64),
    (64, 1, 32),
    (64, 256, 8),
    (128, 1, 8),
    (128, 4, 32),
    (128, 16, 64),
]
# Eager PyTorch at its best: the pages kept, which its users have to ask for.
PEERS = {name: options for name, options in EAGER.items() if name.endswith(KEPT)}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "width, batch, side",
    [pytest.param(*size, marks=pytest.mark.full if place else ()) for place, size in enumerate(SIZES)],
)
def test_size(compare, settings, width, batch, side, precision):
    problem = settings.problem(width=width, batch=batch, side=side, precision=precision, yardstick=True)
    peers = {name: (Step, problem, options) for name, options in PEERS.items()}
    compare("size", problem, Step, peers, calls=True)
