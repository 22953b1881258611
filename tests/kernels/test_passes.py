"""GELU and residual + GELU + group normalization on the CPU against the reference, at every order."""

import functools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu, interface
from tests.kernels.oracle import assert_as_exact_as_eager, derivatives

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# (B, C, H, W), groups: a pixel, a row, sizes that fill no vector, one channel per group, one group, many channels.
SHAPES = [
    ((2, 4, 1, 1), 2),
    ((1, 6, 1, 7), 3),
    ((3, 12, 5, 3), 2),
    ((2, 5, 4, 4), 5),
    ((2, 24, 8, 8), 1),
    ((1, 200, 3, 3), 25),
    ((2, 8, 33, 17), 4),
]
norms = pytest.mark.parametrize("keep", [True, False], ids=["scale-preserving", "plain"])
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@pytest.fixture
def impl():
    """The backend under test; who imports a test that takes it from here says which is theirs."""
    return "cpu"


def norm(impl, groups, keep, eps=0.1, residual=True):
    if residual:
        return lambda x, r, gain: cdn_kernels.gelu_group_norm(
            x, gain, groups, residual=r, eps=eps, scale_preserving=keep, impl=impl
        )
    return lambda x, gain: cdn_kernels.gelu_group_norm(x, gain, groups, eps=eps, scale_preserving=keep, impl=impl)


def norm_inputs(shape, dtype, layout=torch.contiguous_format):
    x, r = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    return x, r, (torch.rand(shape[1]) + 0.5).to(reference.compute_dtype(dtype))


# ------------------------------------------------------------------------------------------------------------
# Derivatives
# ------------------------------------------------------------------------------------------------------------


def test_gelu_passes_numerical_checks():
    u = (3 * torch.randn(4, 5, dtype=torch.float64)).requires_grad_()
    gelu = lambda u: cdn_kernels.gelu(u, impl="cpu")
    assert gradcheck(gelu, u) and gradgradcheck(gelu, u)


@norms
@layouts
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("eps", [1e-3, 0.3])
def test_norm_passes_numerical_checks(keep, layout, residual, eps):
    x, r, gain = (t.requires_grad_() for t in norm_inputs((2, 6, 3, 2), torch.float64, layout))
    inputs = (x, r, gain) if residual else (x, gain)
    function = norm("cpu", 3, keep, eps, residual)
    assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_gelu_is_as_exact_as_eager(impl, dtype, scale):
    u = (scale * torch.randn(3, 7, 5, 9)).to(dtype)
    for inputs in (u, u.to(memory_format=torch.channels_last), u[0, 0, 0], u[:0], u[..., ::2]):
        assert_as_exact_as_eager(lambda u: cdn_kernels.gelu(u, impl=impl), reference.gelu, [inputs])


def check_every_16_bit_number(gelu, dtype, relative):
    """Compare GELU and its derivatives of every number of a dtype with float64.

    Args:
        gelu: the pass of a backend, as cpu.gelu.
        relative: error of the terms that the results are differences of, beside their rounding.
    """
    u = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    value, first, second, ones = (torch.ones_like(u) for _ in range(4))
    gelu(interface.FORWARD, u, None, None, value, None)
    gelu(interface.TANGENT, u, ones, ones, second, first)
    x = u.double()
    phi = lambda x: torch.erfc(x / -math.sqrt(2)) / 2  # torch.special.ndtr has no digits in the tail
    near, a = x.clamp(-50, 50), x.abs().clamp(max=50)  # at infinity, the limits
    pdf = torch.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    cases = [
        (value, x.clamp(min=-50) * phi(x), a * phi(-a)),
        (first, phi(near) + near * pdf, phi(-a) + a * pdf),
        (second, pdf * (2 - a * a), pdf * (2 + a * a)),
    ]
    rounding, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal
    for result, exact, terms in cases:
        bound = rounding * (exact.abs() + tiny) + relative * terms + 1e-34
        assert ((result.double() - exact).abs() <= bound)[exact.isfinite()].all()
        assert torch.equal(result[exact.isinf()].double(), exact[exact.isinf()])
        assert torch.equal(result.isnan(), u.isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("capability", cpu.USABLE)
def test_gelu_of_every_16_bit_number_is_within_the_stated_bound(dtype, capability):
    check_every_16_bit_number(functools.partial(cpu.gelu, capability=capability), dtype, 2.0**-20)


@norms
@layouts
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
def test_norm_is_as_exact_as_eager(keep, layout, dtype, shape, groups):
    inputs = norm_inputs(shape, dtype, layout)
    assert_as_exact_as_eager(norm("cpu", groups, keep), norm("reference", groups, keep), inputs)
    inputs = inputs[::2]
    assert_as_exact_as_eager(
        norm("cpu", groups, keep, residual=False), norm("reference", groups, keep, residual=False), inputs
    )


HARD = {
    "large mean, small variance": lambda x: 30 + 0.01 * x,
    "a constant group": lambda x: torch.cat([torch.full_like(x[:, :2], 0.7), x[:, 2:]], 1),
    "in the tail": lambda x: x - 4,
    "tiny": lambda x: 1e-5 * x,
    "one far outlier": lambda x: x.index_fill(3, torch.tensor([0]), 50.0),
}


@norms
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", HARD.values(), ids=HARD)
def test_norm_survives_hard_inputs(keep, layout, dtype, make):
    x, r, gain = norm_inputs((2, 6, 4, 5), torch.float64, layout)
    inputs = make(x).to(dtype).contiguous(memory_format=layout), gain.to(reference.compute_dtype(dtype))
    assert_as_exact_as_eager(norm("cpu", 3, keep, 1e-3, False), norm("reference", 3, keep, 1e-3, False), inputs)


@layouts
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_samples_of_constant_groups_are_dead(layout, impl):
    x, gain = torch.full((2, 4, 3, 3), 0.3).contiguous(memory_format=layout), torch.ones(4)
    for result in derivatives(norm(impl, 2, True, residual=False), (x, gain)):
        assert torch.equal(result, torch.zeros_like(result))


def test_non_finite_samples_stay_alone(impl):
    x, _, gain = norm_inputs((3, 8, 4, 4), torch.float32)
    clean = derivatives(norm(impl, 2, True, residual=False), (x, gain))
    x[1, 0, 0, 0] = float("nan")
    for before, after in zip(clean, derivatives(norm(impl, 2, True, residual=False), (x, gain))):
        if before.dim() == 4:
            assert torch.equal(before[::2], after[::2]) and after[1].isnan().any()


# ------------------------------------------------------------------------------------------------------------
# Memory, threads, processors
# ------------------------------------------------------------------------------------------------------------


def run_all_sweeps(shape, groups, last, dtype=torch.float32, fill=float("nan"), backend=cpu, **options):
    """Run the three sweeps into buffers with a margin on either side; return (buffers, margins intact)."""
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    x, r, g, t = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(4))
    gain = torch.rand(shape[1], dtype=reference.compute_dtype(dtype)) + 0.5
    margin, buffers = 64, []

    def poisoned(shape, dtype):
        flat = torch.full((torch.Size(shape).numel() + 2 * margin,), fill, dtype=dtype)
        buffers.append(flat)
        body = flat[margin:-margin]
        return (
            body.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
            if last and len(shape) == 4
            else body.view(shape)
        )

    common = (gain, groups, 0.1, True, last)
    v, z, g_v, zdot, source = (poisoned(shape, dtype) for _ in range(5))
    statistics = poisoned((shape[0], 4 * groups + 1), gain.dtype)
    shares, more = (poisoned((shape[0], shape[1]), gain.dtype) for _ in range(2))
    backend.gelu_norm(interface.FORWARD, x, *common, statistics=statistics, out=z, residual=r, sum=v, **options)
    backend.gelu_norm(
        interface.BACKWARD, v, *common, statistics=statistics, out=g_v, grad=g, gain_grad=shares, **options
    )
    backend.gelu_norm(
        interface.TANGENT,
        v,
        *common,
        statistics=statistics,
        out=source,
        grad=g,
        tangent=t,
        tangent_out=zdot,
        gain_grad=more,
        **options,
    )
    intact = all(bool((b[:margin].isnan() & b[-margin:].isnan()).all()) for b in buffers)
    return [b[margin:-margin] for b in buffers], intact


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
def test_every_output_is_written_and_nothing_else(shape, groups, dtype, last):
    for capability in cpu.USABLE:
        results, intact = run_all_sweeps(shape, groups, last, dtype, capability=capability)
        assert intact and all(not r.isnan().any() for r in results)


@pytest.mark.parametrize("last", [False, True])
def test_threads_do_not_change_the_result(last):
    one, two, three = (run_all_sweeps((5, 16, 32, 32), 2, last, threads=n)[0] for n in (1, 2, 3))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, three))


@pytest.mark.parametrize("last", [False, True])
def test_processors_agree(last):
    best, _ = run_all_sweeps((2, 24, 7, 5), 3, last)
    for capability in cpu.USABLE[:-1]:
        for a, b in zip(best, run_all_sweeps((2, 24, 7, 5), 3, last, capability=capability)[0]):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_unknown_numbers_are_refused_by_the_library():
    x = torch.ones(1, 4, 2, 2)
    with pytest.raises(RuntimeError, match="refused"):
        cpu.gelu(7, x, None, None, x, None)
    for groups, eps in ((3, 0.1), (0, 0.1), (2, 0.0), (2, float("nan"))):
        with pytest.raises(RuntimeError, match="refused"):
            cpu.gelu_norm(
                interface.FORWARD, x, torch.ones(4), groups, eps, True, False, statistics=torch.empty(1, 17), out=x
            )
