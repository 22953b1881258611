"""Group normalization with gain and bias on the CPU against torch's, at every order."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels.backends import cpu, interface
from tests.kernels.oracle import assert_as_exact_as_eager, derivatives
from tests.kernels.passes import DTYPES, HARD, LAYOUTS, ROWS, SHAPES, plain_norm_inputs

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def norm(impl, groups, eps=0.1):
    return lambda x, gain, *bias: cdn_kernels.group_norm(x, groups, gain, *bias, eps=eps, impl=impl)


@layouts
@pytest.mark.parametrize("count", [2, 3], ids=["gain", "gain and bias"])
@pytest.mark.parametrize("eps", [1e-3, 0.3])
@pytest.mark.parametrize("shape, groups", [((2, 6, 2, 2), 3), ((3, 4, 1, 1), 1)], ids=["images", "rows"])
def test_it_passes_numerical_checks(layout, count, eps, shape, groups):
    inputs = [t.requires_grad_() for t in plain_norm_inputs(shape, torch.float64, layout)[:count]]
    function = norm("cpu", groups, eps)
    assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


@layouts
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, groups", [*SHAPES, *ROWS], ids=str)
def test_it_is_as_exact_as_eager(layout, dtype, shape, groups):
    inputs = plain_norm_inputs(shape, dtype, layout)
    for some in (inputs, inputs[:2]):
        assert_as_exact_as_eager(norm("cpu", groups), norm("reference", groups), some)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", HARD.values(), ids=HARD)
@pytest.mark.parametrize("rows", [False, True], ids=["images", "rows"])
def test_it_survives_hard_inputs(layout, dtype, make, rows):
    x, gain, bias = plain_norm_inputs((2, 6, 4, 5), torch.float64, layout)
    x, groups = make(x), 3
    if rows:  # one of all numbers of an image
        x, groups = x.reshape(2, 120, 1, 1), 1
        gain, bias = gain.repeat(20), bias.repeat(20)
    inputs = x.to(dtype).contiguous(memory_format=layout), gain.float(), bias.float()
    assert_as_exact_as_eager(norm("cpu", groups, 1e-3), norm("reference", groups, 1e-3), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_one_number_is_its_bias_and_depends_on_nothing_else(dtype):
    inputs = plain_norm_inputs((3, 1, 1, 1), dtype)
    z, by_x, by_gain, by_bias, *second = derivatives(norm("cpu", 1), inputs)
    assert torch.equal(z, inputs[2].to(dtype).expand_as(z)) and by_bias.any()
    assert not by_x.any() and not by_gain.any() and not second[0].any()


@pytest.mark.parametrize("shape, groups", [((3, 8, 4, 4), 2), ((3, 40, 1, 1), 1)], ids=["images", "rows"])
def test_samples_that_are_not_finite_stay_alone(shape, groups):
    x, gain, bias = plain_norm_inputs(shape, torch.float32)
    clean = derivatives(norm("cpu", groups), (x, gain, bias))
    x[1, 0, 0, 0] = float("nan")
    for before, after in zip(clean, derivatives(norm("cpu", groups), (x, gain, bias)), strict=True):
        if before.dim() == 4:
            assert torch.equal(before[::2], after[::2]) and after[1].isnan().any()


def test_numbers_out_of_range_are_refused_by_the_library():
    x = torch.ones(1, 4, 2, 2)
    for groups, eps in ((3, 0.1), (-1, 0.1), (2, 0.0), (2, float("nan"))):
        with pytest.raises(RuntimeError, match="refused"):
            cpu.group_norm(
                interface.FORWARD, x, torch.ones(4), groups, eps, False, statistics=torch.empty(1, 17), out=x
            )


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(x=torch.ones(4, 2)), "x must have 4 dimensions, got shape"),
        (dict(x=torch.ones(1, 4, 0, 2)), "x must have channels and pixels"),
        (dict(groups=3), "groups must divide the 4 channels of x, got 3"),
        (dict(weight=torch.ones(3)), "weight must have one number per channel"),
        (dict(bias=torch.ones(3)), "bias must have one number per channel"),
        (dict(eps=0.0), "eps must be positive, got 0.0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    arguments = dict(x=torch.ones(1, 4, 2, 2), groups=2, weight=torch.ones(4)) | change
    with pytest.raises(ValueError, match=words):
        cdn_kernels.group_norm(**arguments)
