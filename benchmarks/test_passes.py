"""Every pass between convolutions against a copy of as many bytes: "times the floor" is how far from memory it is.

On a GPU those of the other backend run beside it, for impl="auto" to choose by (choices.py).
"""

import math
from itertools import chain

import pytest

from benchmarks.harness.ceilings import Work
from benchmarks.operations import LAYOUTS
from benchmarks.passes import NAMES, difference, make_pass
from benchmarks.steps import DTYPES
from cdn_kernels.backends import dispatch

MIB = 2**20
SMALL = (3, 64, 32, 32)


@pytest.mark.parametrize(
    "layout", [pytest.param(n, marks=() if n == "channels last" else pytest.mark.full) for n in LAYOUTS]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(chain.from_iterable(NAMES.values())))
def test_pass(paired, settings, name, dtype, layout):
    # Tensors of 128 MiB each, larger than any cache.
    image = math.prod(SMALL[1:]) * DTYPES[dtype].itemsize
    cases = []
    for backend in (settings.library, *settings.others):
        make = lambda shape: make_pass(
            name, dispatch.kernels(backend), shape, DTYPES[dtype], LAYOUTS[layout], settings.device
        )
        wrong = difference(make(settings.shape(SMALL)))
        assert not wrong, f"{name}: no measurement: {backend}: {wrong}"
        cases.append(make(settings.shape((128 * MIB // image, *SMALL[1:]))))
    case, *others = cases
    bytes_ = sum(t.nbytes for t in case.reads + case.writes)
    size = bytes_ / len(case.reads + case.writes) / MIB
    paired(
        f"{name}: {size:.0f} MiB a tensor, {dtype}, {layout}",
        ("this library", case.run),
        {backend: other.run for backend, other in zip(settings.others, others)},
        Work(bytes=bytes_),
        operation="pass",
        name=name,
        dtype=dtype,
        layout=layout,
        backend=settings.library,
    )
