"""Our own convolutions in Triton, against float64: on a GPU, or on the CPU by Triton's interpreter, slowly.

Memory is filled with NaN before the kernels write to it.
"""

import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels.backends import convolution_choice as choice
from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT
from cdn_kernels.backends.triton import convolution_choice
from cdn_kernels.ops import convolve
from tests.kernels import convolutions
from tests.kernels.convolutions import (
    MAPS,
    assert_convolutions_are_as_exact_as_eager,
    assert_nan_stays_where_it_belongs,
    assert_slopes_are_part_of_the_maps,
    assert_what_follows_a_map_is_exact,
    exact,
    problem,
)
from tests.kernels.oracle import assert_as_exact_as_eager, assert_rounded_once
from tests.kernels.passes import DTYPES

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
maps = pytest.mark.parametrize("kind", MAPS)
# (B, I, O, H, W), size of the filters, stride: odd channels, several tiles of pixels and of channels, taps that share
# blocks and taps of several, every phase of a stride, single pixels and channels, filters larger than the image.
CASES = [
    ((2, 3, 8, 5, 7), 3, 1),
    ((3, 24, 24, 7, 9), 3, 1),
    ((1, 64, 72, 3, 2), 3, 1),
    ((1, 65, 64, 3, 4), 3, 2),
    ((1, 8, 65, 6, 5), 1, 2),
    ((2, 20, 12, 5, 9), 3, 2),
    ((4, 8, 8, 5, 5), 5, 3),
    ((5, 6, 10, 1, 1), 3, 2),
    ((2, 8, 16, 4, 5), 1, 1),
    ((1, 1, 1, 2, 3), 7, 1),
]
F32, F64, BF16, F16 = DTYPES
EVERYWHERE = [
    *((BF16, *case) for case in CASES),
    *((dtype, *CASES[n]) for dtype in (F32, F64, F16) for n in (0, 5)),
    *((F32, *CASES[n]) for n in (1, 2)),
]


@pytest.fixture(autouse=True)
def _own(monkeypatch, triton_operations):
    monkeypatch.setattr(choice, "CHOICE", "own")
    with convolutions.float32_in("ieee"):
        yield


@pytest.fixture
def cut(monkeypatch):
    """Cut weight gradients into parts as if they had many pixels."""
    monkeypatch.setattr("cdn_kernels.backends.triton.convolution.SHORTEST_PART", 16)


@pytest.fixture
def run(triton_operations):
    """Return a function that runs one map, see convolutions.run."""
    return functools.partial(convolutions.run, triton_operations.conv2d)


@pytest.mark.parametrize("dtype, shape, size, stride", EVERYWHERE, ids=str)
@maps
def test_every_map_is_as_exact_as_one_rounding(run, dtype, shape, size, stride, kind):
    operands, shapes = problem(shape, size, stride, dtype=dtype)
    out = run(kind, operands, shapes, stride)
    assert_rounded_once(out, *exact(kind, operands, size, stride))


@dtypes
@pytest.mark.parametrize("shape, size, stride", [((2, 8, 16, 6, 7), 3, 1), ((2, 9, 8, 8, 8), 3, 2)], ids=str)
def test_parts_of_weight_gradients_add_up_to_the_same_bits(run, cut, dtype, shape, size, stride):
    operands, shapes = problem(shape, size, stride, dtype=dtype)
    one, two = (run(CONV_WEIGHT, operands, shapes, stride) for _ in range(2))
    assert torch.equal(one, two)
    assert_rounded_once(one, *exact(CONV_WEIGHT, operands, size, stride))


@pytest.mark.parametrize(
    "dtype, shape, size, stride", [(BF16, *CASES[0]), (F32, *CASES[5]), (F64, *CASES[0]), (F16, *CASES[5])], ids=str
)
@pytest.mark.parametrize("kind", [CONV_FORWARD, CONV_INPUT])
def test_what_follows_a_map_is_exact(triton_operations, dtype, shape, size, stride, kind):
    operands, shapes = problem(shape, size, stride, dtype=dtype)
    sums = assert_what_follows_a_map_is_exact(triton_operations.conv2d, kind, operands, shapes, size, stride)
    assert torch.equal(sums[1], cdn_kernels.gelu(sums[0], impl="triton"))


@maps
def test_infinity_and_nan_stay_where_they_belong(triton_operations, kind):
    assert_nan_stays_where_it_belongs(triton_operations.conv2d, kind, (3, 6, 10, 9, 9), 4, 4)


# ------------------------------------------------------------------------------------------------------------
# In the operations
# ------------------------------------------------------------------------------------------------------------


def inputs_of(shape, size, dtype):
    batch, inputs, outputs, height, width = shape
    x = torch.randn(batch, inputs, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    return x, (torch.randn(outputs, inputs, size, size) / size / inputs**0.5).to(dtype)


def test_operations_pass_numerical_checks():
    inputs = [t.requires_grad_() for t in inputs_of((1, 2, 2, 3, 2), 3, torch.float64)]
    function = lambda *inputs: cdn_kernels.conv2d_gelu(*inputs, 2, impl="triton")
    assert gradcheck(function, inputs, fast_mode=True) and gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype, size, stride", [(BF16, 3, 1), (F32, 3, 2), (F64, 3, 2), (F16, 1, 2)], ids=str)
def test_operations_are_as_exact_as_eager_and_use_every_map(monkeypatch, triton_operations, dtype, size, stride):
    inputs = inputs_of((2, 8, 16, 6, 5), size, dtype)
    # Another algorithm of the vendor's library sums the same products in another order.
    ulps = 8 if dtype == F32 else 1
    assert_convolutions_are_as_exact_as_eager(monkeypatch, triton_operations, "triton", inputs, stride, MAPS, ulps=ulps)


def pair(impl):
    return lambda *inputs: cdn_kernels.conv2d_gelu_conv2d(*inputs, 2, impl=impl)


def pair_inputs(dtype):
    x, first = inputs_of((1, 2, 8, 4, 3), 3, dtype)
    return x, first, (torch.randn(2, 8, 3, 3) / 8).to(dtype)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_a_pair_is_as_exact_as_eager(dtype):
    assert_as_exact_as_eager(pair("triton"), pair("reference"), pair_inputs(dtype), ulps=8)


def test_the_derivative_of_a_gelu_is_part_of_the_map_before_it(monkeypatch, triton_operations):
    x, *filters = pair_inputs(BF16)
    assert_slopes_are_part_of_the_maps(monkeypatch, triton_operations, pair("triton"), x, filters)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_a_pair_passes_numerical_checks(check):
    assert check(pair("triton"), [t.requires_grad_() for t in pair_inputs(F64)], fast_mode=True)


def test_the_table_and_the_layout_decide(monkeypatch, triton_operations):
    x, weight = inputs_of((2, 8, 16, 6, 5), 3, torch.float32)
    calls = []
    monkeypatch.setattr(triton_operations, "conv2d", lambda *a, **k: calls.append(a[0]))
    convolve.forward(x.contiguous(), weight, 1, "triton")
    monkeypatch.setattr(choice, "CHOICE", "measured")
    convolve.forward(x, weight, 1, "triton")
    assert not calls
    monkeypatch.setattr(choice, "CHOICE", "own")
    convolve.forward(x, weight, 1, "triton")
    assert calls == [CONV_FORWARD]


def test_what_cannot_be_counted_is_refused(triton_operations):
    one = torch.ones(1, 1, 1, 1)
    for shape in (
        ((1 << 20, 1, 1 << 5, 1 << 5), (1, 1, 3, 3)),
        ((1, 1, 1 << 15, 1 << 14), (8, 1, 1, 1)),
        ((1, 1 << 16, 1, 1), (1 << 15, 1 << 16, 1, 1)),
    ):
        assert not convolution_choice.conv2d_is_faster(CONV_FORWARD, one, shape, 1, False)
        with pytest.raises(ValueError, match=r"the triton kernels take no convolution of \d+ .* or more, got \d+"):
            triton_operations.conv2d(CONV_FORWARD, one, one, one, shape, 1)
