"""The Triton kernels against the reference, at every order: on a GPU, or on the CPU by Triton's interpreter, slowly.

Memory is filled with NaN before the kernels write to it.
"""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import NoiseLevels, reference, sample_noise
from cdn_kernels.backends import cpu, interface
from cdn_kernels.backends.dispatch import resolve
from cdn_kernels.backends.triton import INTERPRETED
from tests.kernels.networks import (
    assert_compiles_without_graph_breaks,
    assert_gradient_penalties_equal_the_reference,
    network,
    network_inputs,
)
from tests.kernels.noises import (
    KEY,
    LEVELS,
    assert_denoising_is_that_of_the_cpu,
    assert_denoising_loss_passes_numerical_checks,
    assert_images_get_the_noise_of_their_places,
    assert_levels_are_those_of_the_cpu,
    assert_noise_is_that_of_the_cpu,
    assert_words_are_those_of_the_reference,
)
from tests.kernels.oracle import derivatives
from tests.kernels.passes import (
    DTYPES,
    HARD,
    LAYOUTS,
    assert_activation_is_as_exact_as_eager,
    assert_activation_passes_numerical_checks,
    assert_non_finite_samples_stay_alone,
    assert_norm_is_as_exact_as_eager,
    assert_norm_is_blank_at_the_floor_and_finite_everywhere,
    assert_norm_survives,
    assert_samples_of_constant_groups_are_dead,
    norm,
    norm_inputs,
    run_all_sweeps,
)
from tests.kernels.pooling import (
    assert_head_passes_numerical_checks,
    assert_means_and_squares_are_as_exact_as_eager,
    images,
)
from tests.kernels.triton_place import DEVICE

pytestmark = pytest.mark.usefixtures("triton_operations")

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


@pytest.fixture
def cut(monkeypatch):
    """Cut samples as if they were large."""
    for name, value in (("norm.WHOLE", 0), ("norm.CHUNK", 256), ("pool.LARGEST", 256), ("pool.BLOCK", 128)):
        monkeypatch.setattr(f"cdn_kernels.backends.triton.{name}", value)


# ------------------------------------------------------------------------------------------------------------
# GELU and the norm
# ------------------------------------------------------------------------------------------------------------


def gelu(u):
    return cdn_kernels.gelu(u, impl="triton")


def test_gelu_passes_numerical_checks():
    assert_activation_passes_numerical_checks("triton", (3, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_gelu_is_as_exact_as_eager(dtype, scale):
    assert_activation_is_as_exact_as_eager("triton", dtype, scale)


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
    assert_norm_is_as_exact_as_eager("triton", groups, keep, norm_inputs(shape, dtype, layout))


@norms
@layouts
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_large_samples_are_as_exact_as_eager(cut, keep, layout, dtype):
    assert_norm_is_as_exact_as_eager("triton", 4, keep, norm_inputs((1, 24, 5, 7), dtype, layout))


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", HARD.values(), ids=HARD)
def test_norm_survives_hard_inputs(keep, dtype, make):
    assert_norm_survives(make, "triton", keep, dtype)


@layouts
def test_samples_of_constant_groups_are_dead(layout):
    assert_samples_of_constant_groups_are_dead("triton", layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_norm_is_blank_at_the_floor_and_finite_everywhere(dtype):
    step = 9.0 if dtype == torch.float64 else 1.0
    assert_norm_is_blank_at_the_floor_and_finite_everywhere("triton", dtype, step=step)


def test_norm_of_large_samples_is_blank_at_the_floor_and_finite_everywhere(cut):
    assert_norm_is_blank_at_the_floor_and_finite_everywhere("triton", torch.float32, step=2.0)


def test_non_finite_samples_stay_alone():
    assert_non_finite_samples_stay_alone("triton")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape, groups", SHAPES[1:4], ids=str)
def test_every_output_is_written_and_nothing_else(triton_operations, shape, groups, last):
    results, intact = run_all_sweeps(shape, groups, last, torch.bfloat16, backend=triton_operations)
    assert intact and all(not r.isnan().any() for r in results)


def test_too_many_channels_and_values_are_refused(triton_operations):
    x = torch.ones(1, 1, 1, 1).expand(1, 8192, 1, 1)
    with pytest.raises(ValueError, match="at most 4096 channels"):
        cdn_kernels.gelu_group_norm(x, torch.ones(8192), 2, impl="triton")
    with pytest.raises(ValueError, match=r"samples of less than 2\*\*31"):
        triton_operations.pool(interface.MEAN, (1, 2, 1 << 20, 1 << 10), False, None, a=x)


# ------------------------------------------------------------------------------------------------------------
# Noise
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [reference.NORMAL_STREAM, reference.LEVEL_STREAM])
def test_words_are_equal_bit_for_bit(triton_operations, stream):
    signed = KEY.seed - (1 << 64), KEY.position(DEVICE)
    draw = lambda batch, blocks: triton_operations.random_words(batch, blocks, *signed, stream, DEVICE)
    assert_words_are_those_of_the_reference(draw, stream, DEVICE)


needs_cpu = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


@needs_cpu
@dtypes
@pytest.mark.parametrize("shape", [(3, 1), (2, 1025), (7,), (0, 3), (2, 0), (2, 3, 8, 8), (2, 5, 7, 3)], ids=str)
def test_noise_is_that_of_the_cpu(dtype, shape):
    assert_noise_is_that_of_the_cpu("triton", DEVICE, shape, dtype)


def test_images_get_the_noise_of_their_places():
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.rand(5, 3, 8, 8, device=DEVICE).to(memory_format=layout)
        assert_images_get_the_noise_of_their_places("triton", DEVICE, x)


@needs_cpu
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_levels_are_those_of_the_cpu(levels):
    assert_levels_are_those_of_the_cpu("triton", DEVICE, levels)


@needs_cpu
@dtypes
@pytest.mark.parametrize("shape, longest", [((3, 1), 16), ((2, 2051), 16), ((2, 2051), 1), ((2, 5, 7, 3), 16)], ids=str)
def test_denoising_is_that_of_the_cpu(monkeypatch, dtype, shape, longest):
    monkeypatch.setattr("cdn_kernels.backends.triton.noise.LONGEST", longest)
    assert_denoising_is_that_of_the_cpu("triton", shape, dtype, rtol=1e-14)


def test_loss_passes_numerical_checks():
    assert_denoising_loss_passes_numerical_checks("triton")


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
    assert_means_and_squares_are_as_exact_as_eager("triton", images(shape, dtype, layout))


# ------------------------------------------------------------------------------------------------------------
# Together
# ------------------------------------------------------------------------------------------------------------


def test_gradient_penalties_equal_the_reference():
    assert_gradient_penalties_equal_the_reference("triton")


def test_first_order_compiles_without_graph_breaks():
    def run(y, *parameters):
        return network("triton")(sample_noise(y, NoiseLevels(), KEY, impl="triton")[0], *parameters).sum()

    assert_compiles_without_graph_breaks(run, network_inputs(torch.float32, size=4))


def test_reruns_give_the_same_bits():
    inputs = norm_inputs((2, 24, 9, 7), torch.float32, torch.channels_last)
    one, two = (derivatives(norm("triton", 4, True), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_automatic_choice_on_a_cpu_is_never_triton():
    assert resolve("gelu", "auto", torch.device("cpu"), torch.float32) == ("reference" if cpu.MISSING else "cpu")
