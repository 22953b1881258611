"""The Triton kernels against the reference, at every order: on a GPU, or on the CPU by Triton's interpreter, slowly.

test_triton.py runs this file in a process of its own. Memory is filled with NaN before the kernels write to it.
"""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import Noise, NoiseLevels, denoising_loss, reference, sample_noise
from cdn_kernels.backends import cpu, interface
from cdn_kernels.backends.dispatch import resolve
from cdn_kernels.backends.triton import INTERPRETED, operations
from cdn_kernels.backends.triton import noise as noise_plan
from cdn_kernels.backends.triton import norm as norm_plan
from cdn_kernels.backends.triton import pool as pool_plan
from tests.kernels.oracle import (
    assert_as_exact_as_eager,
    assert_head_passes_numerical_checks,
    assert_levels_are_those_of_the_cpu,
    derivatives,
    in_layouts,
)
from tests.kernels.test_autograd import network, network_inputs, penalty
from tests.kernels.test_noise_kernel import LEVELS
from tests.kernels.test_passes import (  # noqa: F401 - run here too
    HARD,
    norm,
    norm_inputs,
    run_all_sweeps,
    test_gelu_is_as_exact_as_eager,
    test_non_finite_samples_stay_alone,
)

OPS = torch.ops.cdn_kernels
KEY = Noise(0xFEDCBA9876543210, 0x123456789)
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# A pixel, a row, groups that are no power of two, one channel per group, many channels, several tiles.
SHAPES = [
    ((2, 4, 1, 1), 2),
    ((1, 6, 1, 7), 3),
    ((2, 12, 5, 3), 2),
    ((2, 5, 3, 4), 5),
    ((1, 200, 3, 3), 25),
    ((1, 8, 9, 17), 4),
]
norms = pytest.mark.parametrize("keep", [True, False], ids=["scale-preserving", "plain"])
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _setting():
    torch.use_deterministic_algorithms(True)  # which fills empty tensors with NaN
    with torch.device(DEVICE):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def impl():
    return "triton"


@pytest.fixture
def cut(monkeypatch):
    """Cut samples as if they were large."""
    monkeypatch.setattr(norm_plan, "WHOLE", 0)
    monkeypatch.setattr(norm_plan, "CHUNK", 256)
    monkeypatch.setattr(pool_plan, "LARGEST", 256)
    monkeypatch.setattr(pool_plan, "BLOCK", 128)


# ------------------------------------------------------------------------------------------------------------
# GELU and the norm
# ------------------------------------------------------------------------------------------------------------


def gelu(u):
    return cdn_kernels.gelu(u, impl="triton")


def test_gelu_passes_numerical_checks():
    u = (3 * torch.randn(3, 2, dtype=torch.float64)).requires_grad_()
    assert gradcheck(gelu, u) and gradgradcheck(gelu, u)


def test_gelu_is_exact_in_its_tail_and_finite_everywhere():
    u = torch.linspace(-13, 13, 20001)
    truth = 0.5 * torch.special.erfc(u.double() * -(0.5**0.5)) * u.double()
    # The interpreter rounds a fused multiply-add twice.
    assert float(((gelu(u).double() - truth) / truth)[u != 0].abs().max()) < (1e-5 if INTERPRETED else 1e-6)
    u = torch.tensor([1e20, -1e20, 0.0], requires_grad=True)
    (slope,) = torch.autograd.grad(gelu(u).sum(), u)
    assert gelu(u).tolist() == [u[0].item(), 0.0, 0.0] and slope.tolist() == [1.0, 0.0, 0.5]
    assert gelu(torch.tensor([float("nan")])).isnan().all()


@pytest.mark.parametrize("keep, layout", [(True, torch.channels_last), (False, torch.contiguous_format)])
def test_norm_passes_numerical_checks(keep, layout):
    inputs = [t.requires_grad_() for t in norm_inputs((1, 4, 2, 1), torch.float64, layout)]
    function = norm("triton", 2, keep, 0.3)
    assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


@norms
@pytest.mark.parametrize(
    "dtype, layout",
    [(dtype, torch.channels_last) for dtype in DTYPES]
    + [(dtype, torch.contiguous_format) for dtype in (torch.float32, torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
def test_norm_is_as_exact_as_eager(keep, dtype, layout, shape, groups):
    inputs = norm_inputs(shape, dtype, layout)
    assert_as_exact_as_eager(norm("triton", groups, keep), norm("reference", groups, keep), inputs)


@norms
@layouts
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_large_samples_are_as_exact_as_eager(cut, keep, layout, dtype):
    inputs = norm_inputs((1, 24, 5, 7), dtype, layout)
    assert_as_exact_as_eager(norm("triton", 4, keep), norm("reference", 4, keep), inputs)


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", HARD.values(), ids=HARD)
def test_norm_survives_hard_inputs(keep, dtype, make):
    x, _, gain = norm_inputs((2, 6, 4, 5), torch.float64, torch.channels_last)
    inputs = make(x).to(dtype).contiguous(memory_format=torch.channels_last), gain.to(torch.float32)
    assert_as_exact_as_eager(norm("triton", 3, keep, 1e-3, False), norm("reference", 3, keep, 1e-3, False), inputs)


@layouts
def test_samples_of_constant_groups_are_dead(layout):
    x, gain = torch.full((2, 4, 3, 3), 0.3).contiguous(memory_format=layout), torch.ones(4)
    for result in derivatives(norm("triton", 2, True, residual=False), (x, gain)):
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape, groups", SHAPES[1:4], ids=str)
def test_every_output_is_written_and_nothing_else(shape, groups, last):
    results, intact = run_all_sweeps(shape, groups, last, torch.bfloat16, backend=operations)
    assert intact and all(not r.isnan().any() for r in results)


def test_too_many_channels_and_values_are_refused():
    x = torch.ones(1, 1, 1, 1).expand(1, 8192, 1, 1)
    with pytest.raises(ValueError, match="at most 4096 channels"):
        cdn_kernels.gelu_group_norm(x, torch.ones(8192), 2, impl="triton")
    with pytest.raises(ValueError, match=r"samples of less than 2\*\*31"):
        operations.pool(interface.MEAN, (1, 2, 1 << 20, 1 << 10), False, None, a=x)


# ------------------------------------------------------------------------------------------------------------
# Noise
# ------------------------------------------------------------------------------------------------------------


def signed(key):
    return key.seed - (1 << 64), key.position(DEVICE)


@pytest.mark.parametrize("stream", [reference.NORMAL_STREAM, reference.LEVEL_STREAM])
def test_words_are_equal_bit_for_bit(stream):
    for batch, blocks in ((1, 1), (3, 5), (2, 300), (40, 1)):
        words = operations.random_words(batch, blocks, *signed(KEY), stream, DEVICE)
        assert torch.equal(words, reference.random_words(batch, blocks, KEY, stream, DEVICE))


needs_cpu = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


@needs_cpu
@dtypes
@pytest.mark.parametrize("shape", [(3, 1), (2, 1025), (7,), (0, 3), (2, 0), (2, 3, 8, 8), (2, 5, 7, 3)], ids=str)
def test_noise_is_that_of_the_cpu(dtype, shape):
    x, sigma = torch.rand(shape).to(dtype), torch.rand(shape[0])
    for x in in_layouts(x):  # noqa: B020
        y, _ = sample_noise(x, sigma, KEY, impl="triton")
        expected, _ = sample_noise(x.cpu(), sigma.cpu(), KEY, impl="cpu")
        if dtype == torch.float64:
            torch.testing.assert_close(y.cpu(), expected, rtol=1e-14, atol=1e-15)
        else:
            assert torch.equal(y.cpu(), expected)
        assert y.stride() == expected.stride()


@needs_cpu
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_levels_are_those_of_the_cpu(levels):
    assert_levels_are_those_of_the_cpu("triton", DEVICE, levels, KEY)


@needs_cpu
@dtypes
@pytest.mark.parametrize("shape, longest", [((3, 1), 16), ((2, 2051), 16), ((2, 2051), 1), ((2, 5, 7, 3), 16)], ids=str)
def test_denoising_is_that_of_the_cpu(monkeypatch, dtype, shape, longest):
    monkeypatch.setattr(noise_plan, "LONGEST", longest)
    score, sigma = torch.randn(shape).to(dtype), torch.rand(shape[0]) + 0.1
    sigma[1:2] = 0.0
    close = dict(rtol=1e-14, atol=1e-14) if dtype == torch.float64 else dict(rtol=1e-6, atol=1e-9)
    for score in in_layouts(score):  # noqa: B020
        mine = derivatives(lambda s: denoising_loss(s, sigma, KEY, impl="triton"), [score])
        theirs = derivatives(lambda s: denoising_loss(s, sigma.cpu(), KEY, impl="cpu"), [score.cpu()])
        for own, expected in zip(mine, theirs):
            torch.testing.assert_close(own.cpu(), expected, **close)


def test_loss_passes_numerical_checks():
    score, sigma = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0.0, 0.7])
    loss = lambda s: denoising_loss(s, sigma, KEY, impl="triton")
    assert gradcheck(loss, score) and gradgradcheck(loss, score)


# ------------------------------------------------------------------------------------------------------------
# The head
# ------------------------------------------------------------------------------------------------------------


def test_every_map_of_the_head_passes_numerical_checks():
    assert_head_passes_numerical_checks("triton", (2, 3, 2, 1), torch.channels_last)


@layouts
@dtypes
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 12, 5, 3), (1, 200, 3, 3), (1, 8, 9, 17), (0, 4, 2, 2)], ids=str)
def test_means_and_energies_are_as_exact_as_eager(request, layout, dtype, large, shape):
    if large:
        request.getfixturevalue("cut")
    h = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    assert_as_exact_as_eager(lambda h: cdn_kernels.channel_mean(h, impl="triton"), reference.channel_mean, [h])
    assert_as_exact_as_eager(
        lambda h: OPS.sample_square(h, "triton"),
        lambda h: h.to(reference.compute_dtype(h.dtype)).square().sum(1).mean((1, 2)),
        [h],
    )


# ------------------------------------------------------------------------------------------------------------
# Together
# ------------------------------------------------------------------------------------------------------------


def test_gradient_penalties_equal_the_reference():
    inputs = network_inputs()
    mine = torch.autograd.grad(penalty(network("triton"), *inputs), inputs)
    exact = torch.autograd.grad(penalty(network("reference"), *inputs), inputs)
    for a, b in zip(mine, exact):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_first_order_compiles_without_graph_breaks():
    inputs = network_inputs(torch.float32, size=4)
    run = lambda *inputs: network("triton")(
        sample_noise(inputs[0], NoiseLevels(), KEY, impl="triton")[0], *inputs[1:]
    ).sum()
    expected = torch.autograd.grad(run(*inputs), inputs)
    compiled = torch.autograd.grad(torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(compiled, expected):
        torch.testing.assert_close(a, b)


def test_reruns_give_the_same_bits():
    inputs = norm_inputs((2, 24, 9, 7), torch.float32, torch.channels_last)
    one, two = (derivatives(norm("triton", 4, True), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_automatic_choice_on_a_cpu_is_never_triton():
    assert resolve("gelu", "auto", torch.device("cpu"), torch.float32) == ("reference" if cpu.MISSING else "cpu")
