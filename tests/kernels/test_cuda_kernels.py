"""The CUDA kernels against the reference, at every order: on a GPU where there is one, and imitated on the processor.

The imitation (cuda_emulation) runs the sources of the library unchanged. It can be of any size, so that small images
meet what only large ones do on a GPU: samples that shared memory holds in part, and passes in two launches.
"""

import functools
import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import reference, sample_noise
from cdn_kernels.backends import cpu, cuda
from cdn_kernels.backends.interface import BACKWARD, FORWARD, TANGENT, TYPES
from tests.kernels.cuda_libraries import GELU_ERRORS, H200
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
from tests.kernels.oracle import assert_captured, derivatives
from tests.kernels.passes import (
    HARD,
    assert_non_finite_samples_stay_alone,
    assert_norm_is_as_exact_as_eager,
    assert_norm_is_blank_at_the_floor_and_finite_everywhere,
    assert_norm_survives,
    assert_samples_of_constant_groups_are_dead,
    norm,
    norm_inputs,
    run_all_sweeps,
)

SWEEPS = (FORWARD, BACKWARD, TANGENT)
KEPT, PARTLY, SPLIT = 1, 2, 3  # what emulation.cpp calls the ways to cut a pass
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
# A row, groups that fill no vector or line, one channel per group, one group, a bundle that is not full, whole vectors.
SHAPES = [
    ((2, 4, 2, 1), 2),
    ((1, 6, 1, 7), 3),
    ((2, 12, 5, 3), 2),
    ((2, 5, 3, 4), 5),
    ((1, 200, 3, 3), 25),
    ((1, 24, 9, 7), 3),
    ((2, 64, 6, 5), 8),
]
norms = pytest.mark.parametrize("keep", [True, False], ids=["scale-preserving", "plain"])
dtypes = pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
needs_cpu = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


def inputs_of(shape, dtype):
    return norm_inputs(shape, dtype, torch.channels_last)


def check_norm(groups, keep, inputs, eps=0.1):
    assert_norm_is_as_exact_as_eager("cuda", groups, keep, inputs, eps, GELU_ERRORS[inputs[0].dtype])


# ------------------------------------------------------------------------------------------------------------
# The norm
# ------------------------------------------------------------------------------------------------------------


@norms
@pytest.mark.parametrize("residual", [True, False])
def test_norm_passes_numerical_checks(place, keep, residual):
    x, r, gain = (t.requires_grad_() for t in inputs_of((2, 6, 3, 2), F64))
    inputs = (x, r, gain) if residual else (x, gain)
    function = norm("cuda", 3, keep, 0.3, residual)
    assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


@norms
@dtypes
@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
def test_norm_is_as_exact_as_eager(place, keep, dtype, shape, groups):
    inputs = inputs_of(shape, dtype)
    check_norm(groups, keep, inputs)
    check_norm(groups, keep, inputs[::2])


@norms
@pytest.mark.parametrize("shape, groups", [((3, 64, 32, 32), 8), ((2, 128, 16, 16), 16), ((2, 512, 4, 4), 64)], ids=str)
def test_stages_of_a_network_are_as_exact_as_eager(place, keep, shape, groups):
    shape = shape if place.type == "cuda" else (1, *shape[1:])
    check_norm(groups, keep, inputs_of(shape, BF16), eps=1e-3)


@norms
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("make", HARD.values(), ids=HARD)
def test_norm_survives_hard_inputs(place, keep, dtype, make):
    assert_norm_survives(make, "cuda", keep, dtype, channels=24, constants=GELU_ERRORS[dtype])


def test_samples_of_constant_groups_are_dead(place):
    for dtype in (F32, BF16):
        assert_samples_of_constant_groups_are_dead("cuda", torch.channels_last, dtype, channels=16)


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_norm_is_blank_at_the_floor_and_finite_everywhere(place, dtype):
    step = 3.0 if dtype == F64 else 0.5
    assert_norm_is_blank_at_the_floor_and_finite_everywhere("cuda", dtype, channels=16, step=step)


def test_non_finite_samples_stay_alone(place):
    assert_non_finite_samples_stay_alone("cuda", torch.channels_last)


@dtypes
@pytest.mark.parametrize("shape, groups", SHAPES[1:], ids=str)
def test_every_output_is_written_and_nothing_else(place, shape, groups, dtype):
    results, intact = run_all_sweeps(shape, groups, True, dtype, backend=cuda)
    assert intact and all(not r.isnan().any() for r in results)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_reruns_give_the_same_bits(place, dtype):
    one, two = (run_all_sweeps((3, 64, 9, 7), 8, True, dtype, backend=cuda)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_vectors_are_used_where_addresses_allow(place):
    x, _, gain = inputs_of((2, 16, 5, 3), BF16)
    shifted = torch.empty(x.numel() + 1, dtype=BF16)[1:].view(2, 5, 3, 16).permute(0, 3, 1, 2).copy_(x)
    assert shifted.data_ptr() % 16 and shifted.is_contiguous(memory_format=torch.channels_last)
    function = norm("cuda", 2, True, residual=False)
    torch.testing.assert_close(function(shifted, gain), function(x, gain))


def test_an_empty_batch_is_empty(place):
    x, r, gain = inputs_of((0, 8, 3, 3), F32)
    assert [d.shape[0] for d in derivatives(norm("cuda", 2, True), (x, r, gain)) if d.dim() == 4] == [0] * 6


def test_what_the_kernels_do_not_take_is_refused(place):
    with pytest.raises(ValueError, match="takes images that are channels last, got contiguous ones"):
        cdn_kernels.gelu_group_norm(torch.ones(1, 4, 3, 3), torch.ones(4), 2, impl="cuda")
    x = torch.ones(1, 1 << 17, 1, 1)
    with pytest.raises(ValueError, match="the shared memory of a block"):
        cdn_kernels.gelu_group_norm(x, torch.ones(1 << 17), 1, impl="cuda")
    with pytest.raises(ValueError, match=r"2\^30 values or more"):
        cuda._workspace(x, cuda.LIBRARY.cdn_cuda_gelu_norm_workspace(FORWARD, TYPES[BF16], 1, 1 << 15, 1 << 15, 8, 1))
    with pytest.raises(RuntimeError, match="out of range"):
        cuda.gelu_norm(7, torch.ones(1, 4, 1, 1), torch.ones(4), 2, 0.1, True, True, statistics=x, out=x)


# ------------------------------------------------------------------------------------------------------------
# How samples are cut
# ------------------------------------------------------------------------------------------------------------


def planned(chip, sweep, dtype, shape, groups, keep):
    """Return how a pass is cut on the GPU that is imitated."""
    element, vector = (8, 1) if dtype == F64 else (dtype.itemsize, 16 // dtype.itemsize)
    real = 8 if dtype == F64 else 4
    batch, channels, height, width = shape
    vector = vector if channels // groups % vector == 0 else 1
    return chip.plan(sweep, element, vector, real, batch, channels, height * width, groups, keep)


@pytest.fixture
def cut(chip, monkeypatch):
    """Return a function that lets all passes be cut as wanted, by imitating the smallest GPU that cuts them so."""
    run = cuda.gelu_norm

    def cut_as(wanted, otherwise=False):
        multiprocessors = 1000 if wanted == SPLIT else 1

        @functools.cache
        def smallest(*pass_):
            for shared in range(1 << 12, H200[0], 1 << 10):
                chip.emulate(shared, multiprocessors, otherwise)
                if planned(chip, *pass_) == wanted:
                    return shared
            raise AssertionError("no GPU cuts this so")

        def gelu_norm(sweep, x, gain, groups, eps, keep, last, **tensors):
            chip.emulate(smallest(sweep, x.dtype, x.shape, groups, keep), multiprocessors, otherwise)
            run(sweep, x, gain, groups, eps, keep, last, **tensors)

        monkeypatch.setattr(cuda, "gelu_norm", gelu_norm)

    return cut_as


ways = pytest.mark.parametrize("way", [PARTLY, SPLIT], ids=["kept in part", "in two launches"])


@norms
@ways
@pytest.mark.parametrize("dtype", [F64, BF16], ids=str)
@pytest.mark.parametrize("shape, groups", [((2, 40, 11, 23), 5), ((1, 96, 9, 31), 4)], ids=str)
def test_large_samples_are_as_exact_as_eager(cut, keep, way, dtype, shape, groups):
    cut(way)
    inputs = inputs_of(shape, dtype)
    check_norm(groups, keep, inputs)
    check_norm(groups, keep, inputs[::2])


@ways
def test_large_samples_pass_numerical_checks(cut, way):
    cut(way)
    inputs = [t.requires_grad_() for t in inputs_of((1, 2, 1, 1200), F64)]
    function = norm("cuda", 1, True, 0.3)
    assert gradcheck(function, inputs, fast_mode=True) and gradgradcheck(function, inputs, fast_mode=True)


def test_rows_longer_than_a_block_are_as_exact_as_eager(chip):
    for keep, groups in ((True, 3), (False, 1)):
        assert planned(chip, TANGENT, F32, (1, 1503, 2, 2), groups, keep) == SPLIT
        check_norm(groups, keep, inputs_of((1, 1503, 2, 2), F32))


@pytest.mark.parametrize("way", [KEPT, PARTLY, SPLIT], ids=["kept", "kept in part", "in two launches"])
def test_the_order_of_events_does_not_matter(cut, way):
    """Without a barrier or a slot where one is needed, it would: threads go the other way, and copies at once."""
    for shape, groups, dtype in (((2, 64, 9, 31), 8, BF16), ((1, 6, 40, 25), 2, F32)):
        results = []
        for otherwise in (False, True):
            cut(way, otherwise)
            results.append(run_all_sweeps(shape, groups, True, dtype, backend=cuda)[0])
        assert all(torch.equal(a, b) for a, b in zip(*results))


def test_the_stages_of_a_network_stay_in_shared_memory(chip):
    stages = [((512, 64, 32, 32), 8), ((512, 128, 16, 16), 16), ((512, 256, 8, 8), 32), ((512, 512, 4, 4), 64)]
    all_of_it, a100 = [KEPT] * 3, (163 << 10, 108)
    # Forward, backward and tangent keep one, two and three tensors, of 128 KiB in the first stage. Only the
    # scale-preserving norm needs all groups of a sample at once.
    forward_only = [KEPT, PARTLY, PARTLY]
    expected = {
        (H200, True): [forward_only, all_of_it],
        (H200, False): [all_of_it, all_of_it],
        (a100, True): [[PARTLY] * 3, forward_only],
        (a100, False): [forward_only, all_of_it],
    }
    for (size, keep), first_two in expected.items():
        chip.emulate(*size, False)
        cuts = [[planned(chip, sweep, BF16, *stage, keep) for sweep in SWEEPS] for stage in stages]
        assert cuts == [*first_two, all_of_it, all_of_it]


def test_every_plan_covers_its_sample(chip):
    """The imitation checks it: shared memory suffices, steps reach the end of chunks, and chunks that of the sample."""
    kinds = set()
    sizes = itertools.product((99 << 10, 227 << 10), (1, 132), (0, 1, 700), (1, 12, 64, 512), (1, 49, 1024, 224 * 224))
    for shared, multiprocessors, batch, channels, pixels in sizes:
        chip.emulate(shared, multiprocessors, False)
        for sweep, dtype, keep in itertools.product(SWEEPS, (F32, F64, BF16), (True, False)):
            for groups in {1, channels // 4 or 1, channels}:
                kinds.add(planned(chip, sweep, dtype, (batch, channels, pixels, 1), groups, keep))
    assert kinds == {KEPT, PARTLY, SPLIT}


# ------------------------------------------------------------------------------------------------------------
# Noise
# ------------------------------------------------------------------------------------------------------------

# C order in vectors and not, colours in vectors and not, other numbers of channels, several blocks of threads.
NOISE_SHAPES = [
    (3, 1),
    (2, 1025),
    (2, 4096),
    (7,),
    (0, 3),
    (2, 0),
    (2, 3, 8, 8),
    (2, 3, 5, 7),
    (2, 5, 7, 3),
    (2, 1, 4, 4),
]


@pytest.mark.parametrize("stream", [reference.NORMAL_STREAM, reference.LEVEL_STREAM])
def test_words_are_equal_bit_for_bit(place, stream):
    draw = lambda batch, blocks: cuda.random_words(batch, blocks, KEY.seed, KEY.position(place), stream, place)
    assert_words_are_those_of_the_reference(draw, stream, place)


@needs_cpu
@dtypes
@pytest.mark.parametrize("shape", NOISE_SHAPES, ids=str)
def test_noise_is_that_of_the_cpu(place, dtype, shape):
    assert_noise_is_that_of_the_cpu("cuda", place, shape, dtype)


def test_images_get_the_noise_of_their_places(place):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.rand(5, 3, 8, 8).to(memory_format=layout)
        assert_images_get_the_noise_of_their_places("cuda", place, x)


@needs_cpu
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_levels_are_those_of_the_cpu(place, levels):
    assert_levels_are_those_of_the_cpu("cuda", place, levels)


@needs_cpu
@dtypes
@pytest.mark.parametrize("shape", [(3, 1), (2, 2051), (2, 3, 8, 8), (2, 5, 7, 3), (1, 3, 96, 120), (1, 20000)], ids=str)
def test_denoising_is_that_of_the_cpu(place, dtype, shape):
    assert_denoising_is_that_of_the_cpu("cuda", shape, dtype, rtol=1e-13)


def test_a_level_that_is_no_number_shows(place):
    score, sigma = torch.randn(2, 7), torch.tensor([0.5, float("nan")])
    errors = torch.ops.cdn_kernels.denoising_error(score, sigma, 1, torch.tensor(2), 0, None, "cuda")
    assert errors.isnan().tolist() == [False, True]


def test_loss_passes_numerical_checks(place):
    assert_denoising_loss_passes_numerical_checks("cuda")


# ------------------------------------------------------------------------------------------------------------
# On a GPU only
# ------------------------------------------------------------------------------------------------------------


def test_passes_are_captured_in_a_graph(gpu):
    with torch.device("cuda"):
        x, r, gain = inputs_of((4, 64, 32, 32), BF16)

        def work():
            y, sigma = sample_noise(x, LEVELS[0], KEY, impl="cuda")
            return norm("cuda", 8, True)(y, r, gain), sigma

        assert_captured(work)


def test_batches_may_have_more_than_2_31_elements(gpu):
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("less than 24 GiB of memory")
    with torch.device("cuda"):
        x = torch.zeros(33000, 64, 32, 32, dtype=BF16).contiguous(memory_format=torch.channels_last)
        x[-1:] = torch.randn(1, 64, 32, 32)
        gain = torch.ones(64)
        function = norm("cuda", 8, True, residual=False)
        assert torch.equal(function(x, gain)[-1:], function(x[-1:], gain))
