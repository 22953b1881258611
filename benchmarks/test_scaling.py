"""Time and peak memory of the joint step against batch, width, depth and size of the images, for the plots."""

import pytest

from benchmarks.steps import SixUnits, Step

# The middle, and what is varied around it. Without --full, the batch only; a plot takes two of a smoke run.
MIDDLE = dict(width=32, batch=64, side=32, depth=18)
AXES = {
    "batch": (8, 16, 32, 64, 128, 256, 512),
    "width": (16, 32, 64, 128),
    "depth": (18, 34),
    "side": (16, 32, 64, 96),
}
DEFAULT = {("batch", 8): (), ("batch", 32): (), ("batch", 64): pytest.mark.no_smoke}


@pytest.mark.parametrize(
    "axis, value",
    [
        pytest.param(axis, value, marks=DEFAULT.get((axis, value), pytest.mark.full), id=f"{axis}{value}")
        for axis, values in AXES.items()
        for value in values
    ],
)
def test_scaling(compare, settings, axis, value):
    # At 34 layers of random weights bfloat16 leaves half of a gradient to rounding: nothing to compare values by.
    precision = dict(precision="float32") if axis == "depth" else {}
    problem = settings.problem(**MIDDLE | {axis: value} | precision)
    compare(
        "scaling",
        problem,
        Step,
        {"eager, channels last": (Step, problem, {})},
        SixUnits(problem),
        axis=axis,
        value=value,
    )
