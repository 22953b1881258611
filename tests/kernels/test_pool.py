"""Means and energies of feature images on the CPU against the reference, at every order."""

import pytest
import torch

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu, interface
from tests.kernels.pooling import (
    OPS,
    assert_energy_is_as_exact_as_eager,
    assert_head_passes_numerical_checks,
    assert_means_and_squares_are_as_exact_as_eager,
    images,
)

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

SHAPES = [(2, 4, 1, 1), (1, 6, 1, 7), (3, 12, 5, 3), (2, 24, 8, 8), (1, 200, 3, 3), (2, 8, 33, 17), (0, 4, 2, 2)]
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])


@layouts
def test_every_op_passes_numerical_checks(layout):
    assert_head_passes_numerical_checks("cpu", (2, 3, 4, 2), layout)


@layouts
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_means_and_energies_are_as_exact_as_eager(layout, dtype, shape):
    assert_means_and_squares_are_as_exact_as_eager("cpu", images(shape, dtype, layout))


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_energy_is_as_exact_as_eager(layout, dtype):
    assert_energy_is_as_exact_as_eager("cpu", dtype, layout)


@pytest.mark.parametrize("last", [False, True])
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_output_is_written_whatever_the_processor_and_threads(shape, dtype, last):
    a = images(shape, dtype, torch.channels_last if last else torch.contiguous_format)
    real, results = reference.compute_dtype(dtype), []
    for options in [dict(capability=c) for c in cpu.USABLE] + [dict(threads=n) for n in (1, 3)]:
        values, means = torch.full(shape[:1], float("nan"), dtype=real), torch.full(shape[:2], float("nan"), dtype=real)
        scaled, spread = torch.full_like(a, float("nan")), torch.full_like(a, float("nan"))
        cpu.pool(interface.DOT, shape, last, values, a=a, b=a, **options)
        cpu.pool(interface.MEAN, shape, last, means, a=a, **options)
        cpu.pool(interface.SCALE, shape, last, values, a=a, out=scaled, **options)
        cpu.pool(interface.SPREAD, shape, last, means, out=spread, **options)
        results.append([values, means, scaled, spread])
    for result in results:
        for tensor, other in zip(result, results[-1]):
            assert not tensor.isnan().any()
            torch.testing.assert_close(tensor, other, rtol=2 * torch.finfo(tensor.dtype).eps, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(results[-2], results[-1]))


@pytest.mark.parametrize("index", range(5))
def test_registration_passes_opcheck(index):
    a, b = (torch.randn(2, 4, 3, 5, requires_grad=True) for _ in range(2))
    values, means = torch.randn(2, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    op, arguments = [
        (OPS.channel_mean, (a,)),
        (OPS.channel_spread, (means, b.detach())),
        (OPS.sample_square, (a,)),
        (OPS.sample_dot, (a, b)),
        (OPS.sample_scale, (a, values)),
    ][index]
    torch.library.opcheck(op, (*arguments, "cpu"))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cdn_kernels.channel_mean(torch.ones(2, 3)), r"h must have 4 dimensions, got shape \[2, 3\]"),
        (lambda: cdn_kernels.channel_mean(torch.ones(2, 3, 0, 4)), r"h must have pixels, got \[2, 3, 0, 4\]"),
        (lambda: cdn_kernels.energy([torch.ones(1, 2, 3, 3)], []), "maps must be one per feature image, 1, got 0"),
        (lambda: cdn_kernels.energy([torch.ones(1, 2, 3, 3)], [torch.ones(1, 4, 1, 1)]), "x must have the 4 channels"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
