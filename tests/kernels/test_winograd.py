"""Convolutions by minimal filtering: every capability and type, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu, cpu_engines
from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT, TYPES
from tests.kernels import convolutions
from tests.kernels.convolutions import MAPS, exact, intact, nhwc, problem
from tests.kernels.fresh import printed_by
from tests.kernels.minimal_filtering import POINTS, allowed_error, filtered, side, transforms
from tests.kernels.oracle import assert_as_exact_as_eager

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

ENGINES = [f"winograd_{capability}" for capability in cpu.USABLE]
engines = pytest.mark.parametrize("engine", ENGINES)
kinds = pytest.mark.parametrize("kind", MAPS)
dtypes = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype)[6:])
# (B, I, O, H, W): single channels and pixels, channels that fill no vector or more than a panel, images within a tile,
# sides that tiles do not divide, more tiles than a block, and so many that sums are cut into chunks. In 16 bits, the
# last ones have large tiles: cut at the borders, in one block, and more than a block and than one panel of channels.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 33, 7, 5),
    (1, 72, 1, 13, 31),
    (5, 33, 72, 2, 1),
    (3, 70, 130, 4, 4),
    (2, 16, 20, 31, 31),
    (70, 18, 8, 5, 9),
    (16, 5, 18, 13, 15),
    (65, 40, 70, 8, 7),
    (3, 70, 130, 64, 47),
]
# (B, I, O, H, W) of small tiles in every type, and of large ones in 16 bits.
both_sides = pytest.mark.parametrize("shape", [(3, 40, 20, 6, 7), (17, 20, 40, 13, 16)], ids=str)


# The sides of filters and the strides that minimal filtering takes.
FORMS = (3, 1), (3, 2), (5, 2)
forms = pytest.mark.parametrize("size, stride", FORMS)
# Filters of 5x5 have the transforms of 3x3 with stride 1, and the phases of 3x3 with stride 2.
shapes = pytest.mark.parametrize(
    "size, stride, shape", [(*form, s) for form in FORMS for s in (SHAPES if form[0] == 3 else SHAPES[1:9:2])], ids=str
)


def run(kind, shape, dtype, size, stride, **options):
    return convolutions.run(cpu.conv2d, kind, *problem(shape, size, stride, dtype=dtype), stride, **options)


@kinds
@pytest.mark.parametrize("shape", [(2, 3, 4, 6, 9), (1, 2, 1, 1, 16)], ids=str)
@pytest.mark.parametrize("tile, size, stride", POINTS)
def test_the_matrices_of_the_oracle_are_those_of_a_convolution(tile, size, stride, shape, kind):
    operands, _ = problem(shape, size, stride, dtype=torch.float64)
    found = filtered(kind, operands, transforms(tile, size, stride), size, stride)
    torch.testing.assert_close(found, exact(kind, operands, size, stride)[0])


@engines
@shapes
@dtypes
@kinds
def test_errors_are_those_of_the_transforms(engine, shape, dtype, size, stride, kind):
    out = run(kind, shape, dtype, size, stride, engine=engine)
    operands, _ = problem(shape, size, stride, dtype=dtype)
    truth, _ = exact(kind, operands, size, stride)
    assert ((out.double() - truth).abs() <= allowed_error(kind, operands, dtype, size, stride)).all()


@pytest.mark.parametrize("channels", [32, 64])
@forms
@kinds
def test_errors_in_float32_stay_near_those_of_direct_sums(channels, size, stride, kind):
    shape = (4, channels, channels, 16, 16)
    operands, _ = problem(shape, size, stride, dtype=torch.float32)
    truth, _ = exact(kind, operands, size, stride)
    own = run(kind, shape, torch.float32, size, stride, engine=ENGINES[-1])
    errors = [t.double() - truth for t in (own, eager_map(kind, operands, stride))]
    own, others = (float(e.square().mean().sqrt()) for e in errors)
    assert own <= 8 * others
    largest, largest_of_others = (float(e.abs().max()) for e in errors)
    assert largest <= 4 * (largest_of_others + torch.finfo(torch.float32).eps * float(truth.abs().max()))


def eager_map(kind, operands, stride):
    """Return a map of a convolution by torch in the dtype of the operands."""
    first, second, like = operands[kind]
    if kind == CONV_FORWARD:
        return torch.nn.functional.conv2d(first, second, stride=stride, padding=second.shape[2] // 2)
    x, weight, g = (like, second, first) if kind == CONV_INPUT else (first, like, second)
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = torch.nn.functional.conv2d(torch.zeros_like(x) + x, weight, stride=stride, padding=weight.shape[2] // 2)
    return torch.autograd.grad(y, x if kind == CONV_INPUT else weight, g)[0]


# (B, I, O, H, W) of enough products that threads share them, which leave smaller ones to the first: in one block of
# tiles, in chunks, and with more channels than are summed at a time, in one block or in one for each thread.
SHARED = [(65, 40, 70, 8, 7), (9, 33, 130, 30, 29), (32, 300, 16, 8, 8), (16, 128, 160, 8, 8)]


@engines
@pytest.mark.parametrize("shape", SHARED, ids=str)
@forms
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_threads_do_not_change_the_result(engine, shape, dtype, size, stride, kind):
    one, *more = (run(kind, shape, dtype, size, stride, engine=engine, threads=n) for n in (1, 2, 3, 7))
    assert all(torch.equal(one, other) for other in more)


@engines
@dtypes
@both_sides
@forms
def test_activation_is_that_of_the_rounded_preactivation(engine, dtype, shape, size, stride):
    operands, sizes = problem(shape, size, stride, dtype=dtype)
    x, weight, like = operands[CONV_FORWARD]
    (u, _), (activation, buffer), (alone, _) = (nhwc(*like.shape, dtype=dtype) for _ in range(3))
    cpu.conv2d(CONV_FORWARD, x, weight, u, sizes, stride, activation=activation, engine=engine)
    cpu.conv2d(CONV_FORWARD, x, weight, None, sizes, stride, activation=alone, engine=engine)
    assert torch.equal(u, run(CONV_FORWARD, shape, dtype, size, stride, engine=engine))
    assert torch.equal(alone, activation) and intact(buffer)
    torch.testing.assert_close(activation, torch.ops.cdn_kernels.gelu(u, "cpu"), rtol=2e-7, atol=1e-7)


@engines
@dtypes
@both_sides
@forms
def test_the_slope_of_gelu_and_what_is_added_follow_a_gradient(engine, dtype, shape, size, stride):
    operands, sizes = problem(shape, size, stride, dtype=dtype)
    g, weight, like = operands[CONV_INPUT]
    draw = lambda: nhwc(*like.shape, fill=torch.randn(like.shape), dtype=dtype)[0]
    u, added = draw(), draw()
    plain = run(CONV_INPUT, shape, dtype, size, stride, engine=engine)
    truth, _ = exact(CONV_INPUT, operands, size, stride)
    allowed = allowed_error(CONV_INPUT, operands, dtype, size, stride)
    slope = u.double().requires_grad_()
    (slope,) = torch.autograd.grad(reference.gelu(slope).sum(), slope)
    for source in (None, added):
        (product, kept), (out, buffer) = (nhwc(*like.shape, dtype=dtype) for _ in range(2))
        cpu.conv2d(CONV_INPUT, g, weight, out, sizes, stride, u=u, added=source, product=product, engine=engine)
        assert torch.equal(product, plain) and intact(kept) and intact(buffer)
        expected = slope * truth + (0 if source is None else source.double())
        # |phi'| is less than 1.2, and errs by 2^-20 of that where a type has 16 bits.
        brief = 2.0**-20 * truth.abs() if torch.finfo(dtype).bits == 16 else 1e-6 * truth.abs()
        assert (
            (out.double() - expected).abs() <= 1.2 * allowed + brief + torch.finfo(dtype).eps * expected.abs()
        ).all()
        again, _ = nhwc(*like.shape, dtype=dtype)
        cpu.conv2d(CONV_INPUT, g, weight, again, sizes, stride, u=u, added=source, engine=engine)
        assert torch.equal(again, out)


@engines
@kinds
@forms
def test_what_an_earlier_call_left_behind_is_not_read(engine, size, stride, kind):
    shape = (5, 6, 10, 7, 9)
    clean = run(kind, shape, torch.float32, size, stride, engine=engine)
    for other in ((40, 70, 40, 12, 12), (4, 200, 90, 4, 4)):
        operands, sizes = problem(other, size, stride, dtype=torch.float32)
        for poisoned in MAPS:
            first, second, like = operands[poisoned]
            out, _ = nhwc(*like.shape, dtype=torch.float32)
            cpu.conv2d(poisoned, torch.full_like(first, float("nan")), second, out, sizes, stride, engine=engine)
    assert torch.equal(run(kind, shape, torch.float32, size, stride, engine=engine), clean)


@engines
@kinds
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tile, dtype", [(4, torch.float32), (8, torch.bfloat16)], ids=str)
def test_infinity_and_nan_are_seen_where_they_belong_and_fill_no_more_than_their_tiles(
    engine, tile, dtype, kind, value
):
    operands, sizes = problem((17, 6, 10, 16, 13), 3, 1, dtype=dtype)
    assert side(kind, operands[kind][0]) == tile
    row, column = 4, 7
    operands[kind][0][1, 2, row, column] = value
    out = convolutions.run(cpu.conv2d, kind, operands, sizes, 1, engine=engine)
    needed, possible = (torch.zeros_like(out, dtype=torch.bool) for _ in range(2))
    if kind == CONV_WEIGHT:
        needed[:, 2] = possible[:, 2] = True
    else:
        needed[1, :, row - 1 : row + 2, column - 1 : column + 2] = True
        tiles = [slice((at - 1) // tile * tile, (at + 1) // tile * tile + tile) for at in (row, column)]
        possible[1, :, tiles[0], tiles[1]] = True
    strange = ~out.isfinite()
    assert strange[needed].all() and not strange[~possible].any()


@engines
@kinds
@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_an_outlier_costs_its_own_tiles_no_more_than_the_transforms_allow(engine, kind, dtype, size, stride):
    """One pixel in ten a thousand times as large as the rest: the weak spot of minimal filtering."""
    operands, sizes = problem((16, 32, 32, 16, 16), size, stride, dtype=dtype)
    first = operands[kind][0]
    first[:, :, ::5, ::2] *= 1000
    out = convolutions.run(cpu.conv2d, kind, operands, sizes, stride, engine=engine)
    truth, _ = exact(kind, operands, size, stride)
    assert ((out.double() - truth).abs() <= allowed_error(kind, operands, dtype, size, stride)).all()


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 40),
    inputs=st.integers(1, 80),
    outputs=st.integers(1, 80),
    height=st.integers(1, 14),
    width=st.integers(1, 20),
    form=st.sampled_from(FORMS),
    kind=st.sampled_from(MAPS),
    dtype=st.sampled_from(list(TYPES)),
    engine=st.sampled_from(ENGINES or ["none"]),
    threads=st.integers(1, 5),
)
def test_shapes_that_no_one_thought_of(batch, inputs, outputs, height, width, form, kind, dtype, engine, threads):
    size, stride = form
    batch = min(batch, 1 + 20000 // (inputs * height * width))
    shape = batch, inputs, outputs, height, width
    out = run(kind, shape, dtype, size, stride, engine=engine, threads=threads)
    operands, _ = problem(shape, size, stride, dtype=dtype)
    truth, _ = exact(kind, operands, size, stride)
    assert ((out.double() - truth).abs() <= allowed_error(kind, operands, dtype, size, stride)).all()


@pytest.fixture
def always(monkeypatch):
    """Let minimal filtering run every convolution that it can."""
    monkeypatch.setattr(cpu_engines, "CHOICE", "winograd")


def images_and_filters(*shape, size=3, dtype=torch.float64, layout=torch.channels_last):
    batch, inputs, outputs, height, width = shape
    x, weight = torch.randn(batch, inputs, height, width), torch.randn(outputs, inputs, size, size) / size
    return [t.to(dtype, memory_format=layout).requires_grad_() for t in (x, weight)]


def functions():
    pair = lambda x, weight: cdn_kernels.conv2d_gelu_conv2d(x, weight, weight.transpose(0, 1), impl="cpu")
    one = lambda op, stride=1: lambda x, weight: op(x, weight, stride, impl="cpu")
    return {
        "conv2d": one(cdn_kernels.conv2d),
        "conv2d_gelu": one(cdn_kernels.conv2d_gelu),
        "strided": one(cdn_kernels.conv2d_gelu, 2),
        "5x5, strided": one(cdn_kernels.conv2d_gelu, 2),
        "pair": pair,
    }


def size_of(name):
    return 5 if "5x5" in name else 3


layouts = pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])


@layouts
@pytest.mark.parametrize("name", functions())
def test_operations_pass_numerical_checks(always, monkeypatch, name, layout):
    calls = convolutions.maps_that_run(monkeypatch, cpu)
    inputs = images_and_filters(2, 3, 2, 5, 3, size=size_of(name), layout=layout)
    assert gradcheck(functions()[name], inputs) and gradgradcheck(functions()[name], inputs)
    assert {kind for kind, *_ in calls} == set(MAPS)


@layouts
@pytest.mark.parametrize("name", functions())
def test_operations_equal_the_reference_at_every_order_in_float64(always, name, layout):
    inputs = images_and_filters(3, 20, 17, 9, 6, size=size_of(name), layout=layout)
    strided = lambda x, w: reference.conv2d_gelu(x, w, 2)
    eager = {
        "conv2d": reference.conv2d,
        "conv2d_gelu": reference.conv2d_gelu,
        "strided": strided,
        "5x5, strided": strided,
        "pair": lambda x, w: reference.conv2d(reference.conv2d_gelu(x, w), w.transpose(0, 1)),
    }[name]
    assert_as_exact_as_eager(functions()[name], eager, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["conv2d", "conv2d_gelu"])
def test_operations_of_sixteen_bits_are_as_exact_as_eager(name, dtype):
    x, weight = images_and_filters(2, 32, 32, 16, 12)
    inputs = [(x / 4).to(dtype), (weight / 32**0.5).to(dtype)]
    assert_as_exact_as_eager(functions()[name], getattr(reference, name), inputs)


@layouts
def test_registered_operations_keep_their_promises(always, layout):
    x, weight = images_and_filters(2, 3, 2, 5, 3, layout=layout)
    torch.library.opcheck(torch.ops.cdn_kernels.conv2d.default, (x, weight, 1, "cpu"))
    torch.library.opcheck(torch.ops.cdn_kernels.conv2d_gelu.default, (x, weight, 1, True, "cpu"))


def test_steps_stay_within_rounding_of_direct_ones(monkeypatch):
    """Twenty steps of gradient descent on a gradient penalty, whose filters part by no more than rounding."""

    def trained(choice):
        monkeypatch.setattr(cpu_engines, "CHOICE", choice)
        torch.manual_seed(0)
        filters = [torch.randn(32, 32, 3, 3).div_(17).requires_grad_() for _ in range(2)]
        y = torch.randn(4, 32, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(20):
            value = cdn_kernels.conv2d_gelu_conv2d(y, *filters, impl="cpu").square().mean((1, 2, 3))
            (score,) = torch.autograd.grad(value.sum(), y, create_graph=True)
            gradients = torch.autograd.grad(value.mean() + 10 * score.square().sum((1, 2, 3)).mean(), filters)
            with torch.no_grad():
                for weight, gradient in zip(filters, gradients):
                    weight -= 0.05 * gradient
        return torch.cat([weight.detach().flatten() for weight in filters])

    direct, minimal = trained("direct"), trained("winograd")
    assert not torch.equal(direct, minimal)
    assert float((minimal - direct).norm() / direct.norm()) < 1e-5


LARGE = (64, 64, 32, 32), (64, 64, 3, 3)
WIDE = (64, 64, 32, 32), (64, 64, 5, 5)


def chosen(kind=CONV_FORWARD, dtype=torch.float32, shape=LARGE, stride=1, direct=None, capability="avx2", doubles=True):
    job = cpu_engines.Map(kind, dtype, shape, stride, False)
    return cpu_engines.engine_for(job, cpu_engines.Processor(direct, capability, doubles))


@pytest.mark.parametrize(
    "options, engine",
    [
        (dict(), "winograd_avx2"),
        (dict(capability="avx512"), "winograd_avx512"),
        (dict(capability="scalar"), None),
        (dict(capability=None), None),
        (dict(stride=2), "winograd_avx2"),
        (dict(stride=3), None),
        (dict(shape=((64, 64, 32, 32), (64, 64, 1, 1))), None),
        (dict(dtype=torch.float64), None),
        (dict(dtype=torch.bfloat16), "winograd_avx2"),
        (dict(dtype=torch.bfloat16, direct="amx"), "amx"),
        (dict(dtype=torch.float32, direct="amx"), "winograd_avx2"),
        # Of few pixels, sums on AMX weigh more than products.
        (
            dict(shape=((16, 512, 4, 4), (512, 512, 3, 3)), kind=CONV_WEIGHT, dtype=torch.bfloat16, direct="amx"),
            "winograd_avx2",
        ),
        (dict(shape=((32, 512, 4, 4), (512, 512, 3, 3)), kind=CONV_WEIGHT, dtype=torch.bfloat16, direct="amx"), "amx"),
        (dict(dtype=torch.bfloat16, direct="avx512_bf16"), "winograd_avx2"),
        # Few channels: those that are summed over count, where there are many pixels.
        (dict(shape=((64, 3, 32, 32), (64, 3, 3, 3))), None),
        (dict(shape=((4, 3, 16, 16), (64, 3, 3, 3))), "winograd_avx2"),
        (dict(shape=((64, 3, 32, 32), (64, 3, 3, 3)), kind=CONV_INPUT), "winograd_avx2"),
        (dict(shape=((64, 24, 32, 32), (24, 24, 3, 3)), kind=CONV_WEIGHT), "winograd_avx2"),
        (
            dict(
                shape=((64, 24, 32, 32), (24, 24, 3, 3)), kind=CONV_WEIGHT, dtype=torch.bfloat16, direct="avx512_bf16"
            ),
            "avx512_bf16",
        ),
        # With stride 2, only where products of bfloat16 are not twice as fast.
        (dict(stride=2, dtype=torch.float16), "winograd_avx2"),
        (dict(stride=2, dtype=torch.bfloat16), "winograd_avx2"),
        (dict(stride=2, dtype=torch.bfloat16, direct="avx512_bf16"), "avx512_bf16"),
        (dict(stride=2, dtype=torch.bfloat16, direct="avx512_bf16", doubles=False), "winograd_avx2"),
        (dict(stride=2, dtype=torch.bfloat16, direct="amx", doubles=False), "amx"),
        (dict(stride=2, shape=((64, 3, 32, 32), (64, 3, 3, 3)), kind=CONV_INPUT), None),
        (dict(stride=2, shape=((64, 64, 10, 10), (64, 64, 3, 3))), None),
        # Filters of 5x5 with stride 2 gain more, gradients by images of any channels among them.
        (dict(stride=2, shape=WIDE), "winograd_avx2"),
        (dict(stride=1, shape=WIDE), None),
        (dict(stride=2, shape=((64, 3, 32, 32), (64, 3, 5, 5))), None),
        (dict(stride=2, shape=((64, 3, 32, 32), (64, 3, 5, 5)), kind=CONV_INPUT), "winograd_avx2"),
        (dict(stride=2, shape=((64, 64, 4, 4), (64, 64, 5, 5))), None),
        (dict(stride=2, shape=WIDE, dtype=torch.bfloat16, direct="avx512_bf16"), "avx512_bf16"),
        (dict(stride=2, shape=WIDE, dtype=torch.bfloat16, direct="avx512_bf16", doubles=False), "winograd_avx2"),
        (dict(stride=2, shape=WIDE, dtype=torch.bfloat16, direct="amx"), "amx"),
        # Direct sums of float32, with AVX-512: what is small, and what has a stride and few channels.
        (dict(stride=2, shape=((4, 64, 8, 8), (64, 64, 3, 3)), capability="avx512"), "float32_avx512"),
        (dict(stride=2, shape=((64, 8, 32, 32), (64, 8, 3, 3)), capability="avx512"), "float32_avx512"),
        (dict(stride=3, capability="avx512"), "float32_avx512"),
        (dict(stride=3, capability="avx512", dtype=torch.float16), None),
        (dict(shape=((64, 64, 32, 32), (64, 64, 1, 1)), capability="avx512"), None),
        (dict(shape=((1, 64, 32, 32), (64, 64, 1, 1)), capability="avx512"), "float32_avx512"),
        (dict(shape=((4, 3, 16, 16), (64, 3, 3, 3)), capability="avx512"), "float32_avx512"),
        (dict(shape=((4, 16, 16, 16), (64, 16, 3, 3)), capability="avx512"), "winograd_avx512"),
        # Few pixels, or tiles that are not full.
        (dict(shape=((1, 64, 4, 4), (64, 64, 3, 3))), None),
        (dict(shape=((64, 64, 5, 5), (64, 64, 3, 3))), "winograd_avx2"),
        (dict(shape=((64, 64, 5, 5), (64, 64, 3, 3)), dtype=torch.bfloat16, direct="avx512_bf16"), "avx512_bf16"),
        (dict(shape=((3, 64, 8, 8), (64, 64, 3, 3)), dtype=torch.bfloat16, direct="avx512_bf16"), "avx512_bf16"),
    ],
    ids=str,
)
def test_the_choice_follows_type_and_shape(monkeypatch, options, engine):
    monkeypatch.setattr(cpu_engines, "CHOICE", "measured")
    assert chosen(**options) == engine


@pytest.mark.parametrize(
    "channels, side, size, stride, copied",
    [
        (32, 16, 3, 1, True),
        (16, 16, 3, 1, False),
        (32, 2, 3, 1, False),
        (32, 32, 3, 2, False),
        (32, 16, 1, 1, False),
        (16, 32, 5, 2, True),
        (8, 32, 5, 2, False),
        (16, 16, 5, 2, False),
    ],
)
def test_images_that_are_not_channels_last_are_copied_where_that_is_worth_it(
    monkeypatch, channels, side, size, stride, copied
):
    calls = convolutions.maps_that_run(monkeypatch, cpu)
    monkeypatch.setattr(cpu_engines, "CHOICE", "measured")
    x, weight = torch.randn(2, channels, side, side), torch.randn(channels, channels, size, size)
    y = cdn_kernels.conv2d_gelu(x, weight, stride, impl="cpu")
    assert len(calls) == copied and y.is_contiguous()
    torch.testing.assert_close(y, reference.conv2d_gelu(x, weight, stride), rtol=1e-5, atol=1e-4)
    calls.clear()
    monkeypatch.setattr(cpu_engines, "CHOICE", "direct")
    cdn_kernels.conv2d_gelu(x, weight, stride, impl="cpu")
    assert not calls


def test_the_choice_can_be_overruled(monkeypatch):
    monkeypatch.setattr(cpu_engines, "CHOICE", "direct")
    assert chosen() is None
    monkeypatch.setattr(cpu_engines, "CHOICE", "winograd")
    assert chosen(shape=((1, 1, 1, 1), (1, 1, 3, 3)), capability="scalar") == "winograd_scalar"
    assert chosen(stride=2) == "winograd_avx2" and chosen(stride=3) is None
    assert chosen(stride=2, shape=WIDE) == "winograd_avx2" and chosen(shape=WIDE) is None


def test_the_environment_chooses_and_info_says_so():
    code = "from cdn_kernels import info; info.main()"
    assert "as CDN_CPU_CONVOLUTIONS says" in printed_by(code, CDN_CPU_CONVOLUTIONS="direct")
    assert "by minimal filtering, as CDN_CPU_CONVOLUTIONS says" in printed_by(code, CDN_CPU_CONVOLUTIONS="winograd")
    with pytest.raises(ValueError, match="must be one of measured, direct, winograd, got fast"):
        printed_by(code, CDN_CPU_CONVOLUTIONS="fast")


@pytest.mark.parametrize(
    "options",
    [dict(size=5), dict(stride=3), dict(kind=CONV_WEIGHT, u=True), dict(kind=CONV_INPUT, activation=True)],
    ids=str,
)
def test_the_library_refuses_what_it_has_no_code_for(options):
    size, stride = options.pop("size", 3), options.pop("stride", 1)
    kind = options.pop("kind", CONV_FORWARD)
    operands, sizes = problem((1, 2, 3, 4, 4), size, stride, dtype=torch.float32)
    first, second, like = operands[kind]
    more = {name: like.clone() for name in options}
    with pytest.raises(RuntimeError, match="refused its arguments"):
        cpu.conv2d(kind, first, second, like.clone(), sizes, stride, engine="winograd_scalar", **more)
