"""Our own direct convolutions: every engine of this processor, against float64."""

import itertools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_map_only

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu
from cdn_kernels.backends.cpu_engines import ENGINES as KNOWN
from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT
from cdn_kernels.ops import convolve
from tests.kernels import convolutions
from tests.kernels.convolutions import (
    MAPS,
    assert_convolutions_are_as_exact_as_eager,
    assert_nan_stays_where_it_belongs,
    exact,
    intact,
    nhwc,
    problem,
)

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


def dtype_of(engine):
    """Return the type of numbers that a direct engine multiplies."""
    return torch.float32 if engine.startswith("float32") else torch.bfloat16


def usable(engine, size=1):
    """Tell whether this processor has an engine, for filters of a size: it refuses the others."""
    one, weight = (torch.zeros(1, 1, n, n, dtype=dtype_of(engine)) for n in (1, size))
    try:
        cpu.conv2d(CONV_FORWARD, one, weight, one.clone(), (one.shape, weight.shape), 1, engine=engine)
    except RuntimeError:
        return False
    return True


DIRECT = [engine for engine in KNOWN if not engine.startswith("winograd")]
ENGINES = [engine for engine in DIRECT if cpu.MISSING is None and usable(engine)]
engines = pytest.mark.parametrize("engine", ENGINES)
# (B, I, O, H, W), size of the filters, stride: single pixels, odd channels, tiles along rows and across samples, more
# samples than a chunk, or so few that places are summed with them, every phase of a stride, filters larger than the
# image, more than one block and part, long rows, so many inputs that the gradient is packed once for all.
CASES = [
    ((2, 3, 8, 5, 7), 3, 1),
    ((3, 24, 24, 32, 32), 3, 1),
    ((9, 16, 40, 4, 4), 3, 1),
    ((35, 8, 33, 4, 4), 3, 2),
    ((1, 20, 12, 33, 17), 3, 2),
    ((2, 64, 96, 8, 9), 1, 2),
    ((33, 70, 33, 3, 3), 3, 1),
    ((5, 6, 10, 1, 1), 3, 2),
    ((4, 8, 8, 9, 9), 5, 3),
    ((2, 8, 8, 4, 4), 7, 1),
    ((3, 2, 130, 6, 40), 3, 1),
    ((2, 2, 3, 2, 3000), 3, 1),
    ((35, 200, 40, 3, 4), 3, 1),
    ((33, 530, 34, 2, 3), 3, 2),
]
cases = pytest.mark.parametrize("shape, size, stride", CASES, ids=str)


def run(kind, shape, size, stride, engine, **options):
    operands, shapes = problem(shape, size, stride, dtype=dtype_of(engine))
    return convolutions.run(cpu.conv2d, kind, operands, shapes, stride, engine=engine, **options)


def assert_one_rounding(out, kind, shape, size, stride):
    """Check a result, whose float32 sums of n terms of either sign err by about sqrt(n) roundings, at most n."""
    truth, absolute = exact(kind, problem(shape, size, stride, dtype=out.dtype)[0], size, stride)
    assert ((out.double() - truth).abs() <= torch.finfo(out.dtype).eps * truth.abs() + 2.0**-18 * absolute).all()


@engines
@cases
@pytest.mark.parametrize("kind", MAPS)
def test_every_engine_is_as_exact_as_one_rounding(engine, shape, size, stride, kind):
    out = run(kind, shape, size, stride, engine=engine)
    assert_one_rounding(out, kind, shape, size, stride)


@engines
@cases
@pytest.mark.parametrize("kind", MAPS)
def test_threads_do_not_change_the_result(engine, shape, size, stride, kind):
    one, two, three = (run(kind, shape, size, stride, engine=engine, threads=n) for n in (1, 2, 3))
    assert torch.equal(one, two) and torch.equal(one, three)


@engines
def test_activation_is_that_of_the_rounded_preactivation(engine):
    shape, size, stride = (3, 20, 40, 6, 7), 3, 1
    operands, shapes = problem(shape, size, stride, dtype=dtype_of(engine))
    x, weight, like = operands[CONV_FORWARD]
    (again, _), (activation, buffer), (alone, _) = (nhwc(*like.shape, dtype=like.dtype) for _ in range(3))
    u = run(CONV_FORWARD, shape, size, stride, engine=engine)
    cpu.conv2d(CONV_FORWARD, x, weight, again, shapes, stride, activation=activation, engine=engine)
    cpu.conv2d(CONV_FORWARD, x, weight, None, shapes, stride, activation=alone, engine=engine)
    assert torch.equal(again, u) and torch.equal(alone, activation)
    assert intact(buffer)
    truth = reference.gelu(u.double())
    eps = torch.finfo(like.dtype).eps
    torch.testing.assert_close(activation.double(), truth, rtol=eps, atol=2.0**-7 * eps * float(truth.abs().max()))


@engines
@pytest.mark.parametrize("shape, stride", [((5, 6, 10, 7, 9), 2), ((5, 32, 64, 7, 9), 2), ((5, 64, 32, 6, 5), 1)])
@pytest.mark.parametrize("kind", MAPS)
def test_what_an_earlier_call_left_behind_is_not_read(engine, kind, shape, stride):
    size = 3
    clean = run(kind, shape, size, stride, engine=engine)
    for other in (((40, 70, 40, 12, 12), 3, 1), ((40, 33, 7, 8, 8), 1, 1)):
        for poisoned in MAPS:
            operands, shapes = problem(*other, dtype=dtype_of(engine))
            first, second, like = operands[poisoned]
            out, _ = nhwc(*like.shape, dtype=like.dtype)
            cpu.conv2d(poisoned, first.fill_(float("nan")), second, out, shapes, other[2], engine=engine)
    assert torch.equal(run(kind, shape, size, stride, engine=engine), clean)


@engines
@pytest.mark.parametrize("kind", MAPS)
def test_infinity_and_nan_stay_where_they_belong(engine, kind):
    assert_nan_stays_where_it_belongs(cpu.conv2d, kind, (3, 6, 10, 9, 9), 4, 4, dtype_of(engine), engine=engine)


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("engine", KNOWN)
def test_subnormal_numbers_count_as_themselves_or_as_zeros(engine, kind):
    """They would take a hundred times as long, and what torch does with them afterwards stays as it was."""
    dtype = torch.float32 if engine.startswith("winograd") else dtype_of(engine)
    if not usable(engine, 3):
        pytest.skip(f"this processor has no {engine}")
    operands, shapes = problem((3, 20, 12, 8, 6), 3, 1, dtype=dtype)
    tiny = torch.finfo(dtype).tiny
    for t in operands[kind][:2]:
        t[:, ::2] *= tiny
    operands[kind][0][0, 0] = tiny / 2
    out = convolutions.run(cpu.conv2d, kind, operands, shapes, 1, engine=engine, threads=2)
    truth, absolute = exact(kind, operands, 3, 1)
    terms = 9 * 20 * 144
    assert ((out.double() - truth).abs() <= 2.0**-7 * absolute + terms * tiny).all()
    assert float(torch.tensor(tiny) / 2) > 0


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 70),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    height=st.integers(1, 12),
    width=st.integers(1, 36),
    size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    kind=st.sampled_from(MAPS),
    engine=st.sampled_from(ENGINES or ["none"]),
    threads=st.integers(1, 3),
)
def test_shapes_that_no_one_thought_of(batch, inputs, outputs, height, width, size, stride, kind, engine, threads):
    batch = min(batch, 1 + 20000 // (inputs * height * width))  # imitations are slow
    shape = batch, inputs, outputs, height, width
    out = run(kind, shape, size, stride, engine=engine, threads=threads)
    assert_one_rounding(out, kind, shape, size, stride)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_operations_use_them_at_every_order(monkeypatch, size, stride):
    monkeypatch.setattr(cpu, "ENGINE", cpu.ENGINE or "portable")
    x = torch.randn(8, 32, 6, 5).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(32, 32, size, size) / size / 32**0.5).bfloat16()
    maps = MAPS if size > 1 or cpu.ENGINE == "amx" else (CONV_FORWARD, CONV_INPUT)
    assert_convolutions_are_as_exact_as_eager(monkeypatch, cpu, "cpu", (x, weight), stride, maps)
    with torch.no_grad():
        inference = cdn_kernels.conv2d_gelu(x, weight, stride, impl="cpu")
    assert torch.equal(inference, cdn_kernels.conv2d_gelu(x.requires_grad_(), weight, stride, impl="cpu"))


def in_the_other_layout(function):
    """Return a function of tensors whose results [B, C, H, W] are contiguous if channels last, and the reverse."""

    def turn(t):
        last = t.is_contiguous(memory_format=torch.channels_last)
        return t.contiguous(memory_format=torch.contiguous_format if last else torch.channels_last)

    return lambda *arguments: tree_map_only(torch.Tensor, turn, function(*arguments))


@pytest.mark.parametrize("engine, turned", [(None, False), (None, True), ("portable", False)])
def test_results_have_the_layout_of_the_input(monkeypatch, engine, turned):
    """Also where torch's convolutions turn the layout, as those of cuDNN do in float64."""
    monkeypatch.setattr(cpu, "ENGINE", engine)
    if turned:
        for name in ("convolution", "convolution_backward"):
            monkeypatch.setattr(torch.ops.aten, name, in_the_other_layout(getattr(torch.ops.aten, name)))
    for layout, channels in itertools.product((torch.contiguous_format, torch.channels_last), (32, 1)):
        x = torch.randn(2, channels, 6, 6).bfloat16().contiguous(memory_format=layout)
        # Images of one channel are in both layouts, and the filters say which is meant.
        weight = torch.randn(32, channels, 3, 3).bfloat16().to(memory_format=layout)
        y = convolve.forward(x, weight, 1, "cpu")
        for result in (
            y,
            *convolve.forward_gelu(x, weight, 2, True, "cpu"),
            convolve.by_input(y, weight, x.shape, 1, "cpu"),
            convolve.by_weight(x, y, 3, 1, "cpu"),
        ):
            assert result.is_contiguous(memory_format=layout)
        assert y.stride() == convolve.empty_forward(x, weight, 1, "cpu").stride()


@pytest.mark.parametrize(
    "options",
    [
        dict(engine=None),
        dict(engine="portable", size=2),
        dict(engine="portable", size=9),
        dict(engine="portable", stride=0),
    ],
)
def test_the_library_refuses_what_it_has_no_code_for(options):
    size, stride = options.get("size", 3), options.get("stride", 1)
    x = torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16)
    missing = [engine for engine in DIRECT if engine not in ENGINES]
    engine = options["engine"] or (missing or ["portable"])[0]
    with pytest.raises(RuntimeError, match="refused its arguments"):
        cpu.conv2d(
            CONV_FORWARD if missing or options["engine"] else 3,
            x,
            x,
            x.clone(),
            (x.shape, (1, 1, size, size)),
            stride,
            engine=engine,
        )


FEW_INPUTS = """
import itertools
import sys
import torch
from cdn_kernels import conv2d
torch.set_num_threads(2)
for dtype, inputs, batch in itertools.product((torch.float32, torch.bfloat16), (1, 3, 8, 15), (1, 2, 3, 5)):
    x = torch.randn(batch, inputs, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, inputs, 1, 1, dtype=dtype, requires_grad=True)
    conv2d(x, weight, 2, impl=sys.argv[1]).float().square().sum().backward()
    exact = weight.detach().float().requires_grad_()
    torch.nn.functional.conv2d(x.float().contiguous(), exact, stride=2).square().sum().backward()
    assert weight.grad.dtype == dtype
    assert (weight.grad.float() - exact.grad).norm() <= (2e-2 if dtype == torch.bfloat16 else 1e-5) * exact.grad.norm()
"""


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_gradients_of_few_inputs_by_strided_1x1_filters(impl):
    """oneDNN's, whose place is taken, end the process."""
    subprocess.run([sys.executable, "-c", FEW_INPUTS, impl], check=True)
