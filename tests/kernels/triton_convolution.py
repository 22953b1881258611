"""Our own convolutions in Triton, against float64: on a GPU, or on the CPU by Triton's interpreter, slowly.

test_triton.py runs this file in a process of its own. Memory is filled with NaN before the kernels write to it.
"""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import convolution_choice as choice
from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT
from cdn_kernels.backends.triton import convolution as plan
from cdn_kernels.backends.triton import convolution_choice, convolution_tiles, operations
from cdn_kernels.ops import convolve
from tests.kernels.oracle import assert_as_exact_as_eager, assert_rounded_once, maps_of_convolutions
from tests.kernels.test_convolution import MARGIN, exact, nhwc, problem
from tests.kernels.triton_kernels import DEVICE, DTYPES, dtypes

MAPS = (CONV_FORWARD, CONV_INPUT, CONV_WEIGHT)
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
def _setting(monkeypatch):
    monkeypatch.setattr(choice, "CHOICE", "own")
    convolutions = torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    torch.use_deterministic_algorithms(True)  # which fills empty tensors with NaN
    with torch.device(DEVICE):
        yield
    torch.use_deterministic_algorithms(False)
    convolutions.fp32_precision = before


@pytest.fixture
def cut(monkeypatch):
    """Cut weight gradients into parts as if they had many pixels."""
    monkeypatch.setattr(plan, "SHORTEST_PART", 16)


def run(kind, operands, shapes, stride, **options):
    """Run one map into a poisoned buffer; return its result after checking the margins."""
    first, second, like = operands[kind]
    out, buffer = nhwc(*like.shape, dtype=like.dtype)
    operations.conv2d(kind, first, second, out, shapes, stride, **options)
    assert buffer[:MARGIN].isnan().all() and buffer[-MARGIN:].isnan().all()
    return out


@pytest.mark.parametrize("dtype, shape, size, stride", EVERYWHERE, ids=str)
@maps
def test_every_map_is_as_exact_as_one_rounding(dtype, shape, size, stride, kind):
    operands, shapes = problem(shape, size, stride, dtype=dtype)
    out = run(kind, operands, shapes, stride)
    assert_rounded_once(out, *exact(kind, operands, size, stride))


@dtypes
@pytest.mark.parametrize("shape, size, stride", [((2, 8, 16, 6, 7), 3, 1), ((2, 9, 8, 8, 8), 3, 2)], ids=str)
def test_parts_of_weight_gradients_add_up_to_the_same_bits(cut, dtype, shape, size, stride):
    operands, shapes = problem(shape, size, stride, dtype=dtype)
    one, two = (run(CONV_WEIGHT, operands, shapes, stride) for _ in range(2))
    assert torch.equal(one, two)
    assert_rounded_once(one, *exact(CONV_WEIGHT, operands, size, stride))


@pytest.mark.parametrize(
    "dtype, shape, size, stride", [(BF16, *CASES[0]), (F32, *CASES[5]), (F64, *CASES[0]), (F16, *CASES[5])], ids=str
)
@pytest.mark.parametrize("kind", [CONV_FORWARD, CONV_INPUT])
def test_what_follows_a_map_is_exact(dtype, shape, size, stride, kind):
    operands, shapes = problem(shape, size, stride, dtype=dtype)
    like = operands[kind][2]
    u, added = (nhwc(*like.shape, fill=torch.randn(like.shape), dtype=dtype)[0] for _ in range(2))
    product, absolute = exact(kind, operands, size, stride)
    activation, buffer = nhwc(*like.shape, dtype=dtype)
    out = run(kind, operands, shapes, stride, added=added, activation=activation)
    assert buffer[:MARGIN].isnan().all() and buffer[-MARGIN:].isnan().all()
    assert_rounded_once(out, product + added.double(), absolute, added.double().abs())
    assert torch.equal(activation, cdn_kernels.gelu(out, impl="triton"))
    alone, _ = nhwc(*like.shape, dtype=dtype)
    operations.conv2d(kind, *operands[kind][:2], None, shapes, stride, added=added, activation=alone)
    assert torch.equal(alone, activation)
    slope = u.double().requires_grad_()
    (slope,) = torch.autograd.grad(reference.gelu(slope).sum(), slope)
    out = run(kind, operands, shapes, stride, u=u, added=added)
    # |phi'| is less than 1.2.
    assert_rounded_once(out, slope * product + added.double(), 1.2 * absolute, added.double().abs())
    kept, buffer = nhwc(*like.shape, dtype=dtype)
    assert torch.equal(run(kind, operands, shapes, stride, u=u, added=added, product=kept), out)
    assert_rounded_once(kept, product, absolute)
    assert buffer[:MARGIN].isnan().all() and buffer[-MARGIN:].isnan().all()


@maps
def test_infinity_and_nan_stay_where_they_belong(kind):
    operands, shapes = problem((3, 6, 10, 9, 9), 3, 1)
    operands[kind][0][1, 2, 4, 4] = float("nan")
    out = run(kind, operands, shapes, 1)
    mask = torch.zeros_like(out, dtype=torch.bool)
    if kind == CONV_WEIGHT:
        mask[:, 2] = True
    else:
        mask[1, :, 3:6, 3:6] = True
    assert torch.equal(out.isnan(), mask)


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
def test_operations_are_as_exact_as_eager_and_use_every_map(monkeypatch, dtype, size, stride):
    inputs = inputs_of((2, 8, 16, 6, 5), size, dtype)
    # Another algorithm of the vendor's library sums the same products in another order.
    ulps = 8 if dtype == torch.float32 else 1
    assert maps_of_convolutions(monkeypatch, operations, "triton", inputs, stride, ulps=ulps) == set(MAPS)


def pair_inputs(dtype):
    x, first = inputs_of((1, 2, 8, 4, 3), 3, dtype)
    return x, first, (torch.randn(2, 8, 3, 3) / 8).to(dtype)


def test_the_derivative_of_a_gelu_is_part_of_the_map_before_it(monkeypatch):
    """Of the pair, every gradient by the pre-activation comes out of one kernel, at all orders."""
    epilogues = []
    kernel = operations.conv2d
    monkeypatch.setattr(
        operations,
        "conv2d",
        lambda kind, *arguments, **options: (
            epilogues.append((kind, *(name for name, given in options.items() if given is not None))),
            kernel(kind, *arguments, **options),
        ),
    )
    pair = lambda impl: lambda *inputs: cdn_kernels.conv2d_gelu_conv2d(*inputs, 2, impl=impl)
    for dtype in (BF16, F32):
        assert_as_exact_as_eager(pair("triton"), pair("reference"), pair_inputs(dtype), ulps=8)
    x, *filters = pair_inputs(BF16)
    epilogues.clear()
    (score,) = torch.autograd.grad(pair("triton")(x.requires_grad_(), *filters).square().sum(), x, create_graph=True)
    # It keeps the product for the tangent; the backward pass after it adds what comes from there, and keeps nothing.
    assert epilogues == [(CONV_FORWARD, "activation"), (CONV_FORWARD,), (CONV_INPUT, "u", "product"), (CONV_INPUT,)]
    epilogues.clear()
    torch.autograd.grad(score.square().sum(), x)
    assert [epilogue for epilogue in epilogues if "u" in epilogue] == [(CONV_INPUT, "u", "added")]
    inputs = [t.requires_grad_() for t in pair_inputs(F64)]
    assert gradcheck(pair("triton"), inputs, fast_mode=True) and gradgradcheck(pair("triton"), inputs, fast_mode=True)


def test_the_table_and_the_layout_decide(monkeypatch):
    x, weight = inputs_of((2, 8, 16, 6, 5), 3, torch.float32)
    calls = []
    monkeypatch.setattr(operations, "conv2d", lambda *a, **k: calls.append(a[0]))
    convolve.forward(x.contiguous(), weight, 1, "triton")
    monkeypatch.setattr(choice, "CHOICE", "measured")
    convolve.forward(x, weight, 1, "triton")
    assert not calls
    monkeypatch.setattr(choice, "CHOICE", "own")
    convolve.forward(x, weight, 1, "triton")
    assert calls == [CONV_FORWARD]


def test_what_cannot_be_counted_is_refused():
    one = torch.ones(1, 1, 1, 1)
    for shape in (
        ((1 << 20, 1, 1 << 5, 1 << 5), (1, 1, 3, 3)),
        ((1, 1, 1 << 15, 1 << 14), (8, 1, 1, 1)),
        ((1, 1 << 16, 1, 1), (1 << 15, 1 << 16, 1, 1)),
    ):
        assert not convolution_choice.conv2d_is_faster(CONV_FORWARD, one, shape, 1, False)
        with pytest.raises(ValueError, match=r"the triton kernels take no convolution of \d+ .* or more, got \d+"):
            operations.conv2d(CONV_FORWARD, one, one, one, shape, 1)


def test_tiles_count_as_the_limits_suppose():
    tables = *convolution_tiles.TILES.values(), *convolution_tiles.RAGGED.values()
    assert max(tile.rows for choices in tables for _, _, tile in choices) <= convolution_choice.LARGEST_TILE
