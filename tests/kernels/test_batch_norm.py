"""Batch normalization in passes of the CPU, which torch's layers run in, against the reference at every order."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from cdn_kernels import reference
from cdn_kernels.backends import cpu
from cdn_kernels.backends.interface import NO_GROUPS
from cdn_kernels.ops.group_norm import batch_norm
from tests.kernels.oracle import assert_as_exact_as_eager, derivatives
from tests.kernels.passes import DTYPES, HARD, LAYOUTS, ROWS, SHAPES, plain_norm_inputs, run_all_plain_sweeps

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
lasts = pytest.mark.parametrize("last", [False, True])

# The last ones are cut into segments: of as many pixels, and of uneven ones with channels that fill no vector.
FORMS = [shape for shape, _ in [*SHAPES, *ROWS] if shape[0] * shape[2] * shape[3] > 1]
FORMS += [(3, 16, 64, 64), (2, 35, 61, 47)]


def norm(eps=0.1):
    return lambda x, gain, bias=None: batch_norm(x, gain, bias, eps)[0]


def spelled(eps=0.1):
    return lambda x, gain, bias=None: reference.batch_norm(x, gain, bias, eps)


@layouts
@pytest.mark.parametrize("count", [2, 3], ids=["gain", "gain and bias"])
@pytest.mark.parametrize("eps", [1e-3, 0.3])
@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (5, 2, 1, 1)], ids=["images", "rows"])
def test_it_passes_numerical_checks(layout, count, eps, shape):
    inputs = [t.requires_grad_() for t in plain_norm_inputs(shape, torch.float64, layout)[:count]]
    assert gradcheck(norm(eps), inputs) and gradgradcheck(norm(eps), inputs)


@layouts
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_it_is_as_exact_as_eager(layout, dtype, shape):
    inputs = plain_norm_inputs(shape, dtype, layout)
    for some in (inputs, inputs[:2]):
        assert_as_exact_as_eager(norm(), spelled(), some)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", HARD.values(), ids=HARD)
@pytest.mark.parametrize("shape", [(3, 6, 4, 5), (2, 6, 129, 101)], ids=["one segment", "two"])
def test_it_survives_hard_inputs(layout, dtype, make, shape):
    x, gain, bias = plain_norm_inputs(shape, torch.float64)
    inputs = make(x).to(dtype).contiguous(memory_format=layout), gain.float(), bias.float()
    assert_as_exact_as_eager(norm(1e-3), spelled(1e-3), inputs)


@layouts
def test_segments_with_means_far_apart_have_the_variance_of_all(layout):
    x, gain, bias = plain_norm_inputs((4, 16, 64, 64), torch.float64, layout)
    x += torch.tensor([-300.0, -100.0, 100.0, 300.0], dtype=x.dtype).view(4, 1, 1, 1)
    assert_as_exact_as_eager(norm(), spelled(), (x.float(), gain.float(), bias.float()))


@layouts
def test_mean_and_variance_are_those_of_all_samples(layout):
    x, gain, bias = plain_norm_inputs((3, 16, 70, 64), torch.float64, layout)
    _, mean, variance = batch_norm(x, gain, bias, 0.1)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)), rtol=0, atol=1e-14)
    torch.testing.assert_close(variance, x.var((0, 2, 3), unbiased=False), rtol=1e-13, atol=0)
    assert not mean.requires_grad


@layouts
def test_a_constant_channel_is_its_bias(layout):
    x, gain, bias = plain_norm_inputs((2, 4, 100, 100), torch.float32, layout)
    x[:, 1] = 0.7
    z, mean, variance = batch_norm(x, gain, bias, 1e-5)
    assert torch.equal(z[:, 1], bias[1].expand_as(z[:, 1])) and variance[1] == 0 and mean[1] == x[0, 1, 0, 0]


@layouts
def test_channels_that_are_not_finite_stay_alone(layout):
    inputs = plain_norm_inputs((3, 8, 60, 60), torch.float32, layout)
    clean = derivatives(norm(), inputs)
    inputs[0][1, 3, 0, 0] = float("nan")
    channels = torch.arange(8) != 3
    for before, after in zip(clean, derivatives(norm(), inputs), strict=True):
        dim = 0 if before.dim() == 1 else 1
        assert torch.equal(before.movedim(dim, 0)[channels], after.movedim(dim, 0)[channels])
        assert before.shape[dim] == 8


@lasts
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_every_output_is_written_and_nothing_else(last, shape, dtype):
    for capability in cpu.USABLE:
        results, intact = run_all_plain_sweeps(shape, NO_GROUPS, last, dtype, capability=capability)
        assert intact and all(not r.isnan().any() for r in results)


@lasts
@pytest.mark.parametrize("shape", [(5, 16, 64, 65), (7000, 33, 1, 1)], ids=["images", "rows"])
def test_threads_do_not_change_the_result(last, shape):
    one, two, three = (run_all_plain_sweeps(shape, NO_GROUPS, last, threads=n)[0] for n in (1, 2, 3))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, three))


@lasts
@pytest.mark.parametrize("shape", [(2, 24, 7, 5), (3, 20, 60, 50)], ids=["one segment", "two"])
def test_processors_agree(last, shape):
    best, _ = run_all_plain_sweeps(shape, NO_GROUPS, last)
    for capability in cpu.USABLE[:-1]:
        for a, b in zip(best, run_all_plain_sweeps(shape, NO_GROUPS, last, capability=capability)[0], strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
