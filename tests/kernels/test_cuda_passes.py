"""GELU, means and energies by the CUDA kernels, at every order: on a GPU, and imitated on the processor."""

import pytest
import torch

import cdn
import cdn_kernels
from cdn_kernels import Noise, NoiseLevels, reference
from cdn_kernels.backends import cpu, cuda, dispatch
from cdn_kernels.backends.interface import DOT, MEAN, SCALE, SPREAD, TYPES
from tests.kernels.cuda_libraries import GELU_ERRORS, H200
from tests.kernels.passes import (
    LAYOUTS,
    assert_activation_is_as_exact_as_eager,
    assert_activation_of_every_16_bit_number_is_within,
    assert_activation_passes_numerical_checks,
    exact_gelu,
)
from tests.kernels.pooling import (
    OPS,
    assert_energy_is_as_exact_as_eager,
    assert_head_passes_numerical_checks,
    assert_means_and_squares_are_as_exact_as_eager,
    images,
)

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
# One pixel, a row, sizes that fill no vector, many samples to a block, many channels, and columns of several parts: of
# runs beyond 4096 vectors, of channels beyond 32 steps.
SHAPES = [
    (2, 4, 1, 1),
    (1, 6, 1, 7),
    (3, 12, 5, 3),
    (70, 8, 2, 1),
    (1, 200, 3, 3),
    (2, 8, 33, 17),
    (1, 136, 20, 21),
    (1, 2, 130, 128),
    (1, 1, 40, 211),
    (0, 4, 2, 2),
]


# ------------------------------------------------------------------------------------------------------------
# GELU
# ------------------------------------------------------------------------------------------------------------


def test_gelu_passes_numerical_checks(place):
    assert_activation_passes_numerical_checks("cuda")


@dtypes
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_gelu_is_as_exact_as_eager(place, dtype, scale):
    assert_activation_is_as_exact_as_eager("cuda", dtype, scale, GELU_ERRORS[dtype])


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_gelu_of_every_16_bit_number_is_within_the_stated_bound(place, dtype):
    assert_activation_of_every_16_bit_number_is_within(cuda.gelu, exact_gelu, dtype, 2.0**-17 + 2.0**-20)


@dtypes
def test_sweeps_with_a_source_add_it(place, dtype):
    """As the backward pass of a convolution with GELU does: the gradient of the pre-activation is added on the way."""
    u, grad, source = (torch.randn(3, 43).to(dtype) for _ in range(3))
    both, alone = OPS.gelu_backward(u, grad, source, "cuda"), OPS.gelu_backward(u, grad, None, "cuda")
    # Two more roundings, at the size of the gradient and of the sum.
    torch.testing.assert_close(
        both.double(),
        alone.double() + source.double(),
        rtol=0,
        atol=2 * torch.finfo(dtype).eps * float(alone.abs().max() + source.abs().max()),
    )


# ------------------------------------------------------------------------------------------------------------
# Pooling
# ------------------------------------------------------------------------------------------------------------


@layouts
def test_every_op_passes_numerical_checks(place, layout):
    assert_head_passes_numerical_checks("cuda", (2, 3, 4, 2), layout)


@layouts
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_means_and_squares_are_as_exact_as_eager(place, layout, dtype, shape):
    assert_means_and_squares_are_as_exact_as_eager("cuda", images(shape, dtype, layout))


@layouts
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_energy_is_as_exact_as_eager(place, layout, dtype):
    assert_energy_is_as_exact_as_eager("cuda", dtype, layout)


def run_all(shape, last, dtype, backend=cuda, shift=0):
    """Run the four kinds into buffers with a margin on either side; return (buffers, margins intact)."""
    torch.manual_seed(0)
    real, margin, buffers = reference.compute_dtype(dtype), 64, []

    def place(shape, dtype, last, values=None):
        flat = torch.full((torch.Size(shape).numel() + 2 * margin,), float("nan"), dtype=dtype)
        body = flat[margin + shift : flat.numel() - margin + shift]
        if values is None:
            buffers.append((flat, body))
        body = body.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2) if last else body.view(shape)
        return body if values is None else body.copy_(values)

    a, b = (place(shape, dtype, last, torch.randn(shape, device="cpu")) for _ in range(2))
    given, given_means = (torch.rand(s, device="cpu").to(a.device, real) for s in (shape[:1], shape[:2]))
    dots, means = place(shape[:1], real, False), place(shape[:2], real, False)
    scaled, spread = (place(shape, dtype, last) for _ in range(2))
    backend.pool(DOT, shape, last, dots, a=a, b=b)
    backend.pool(MEAN, shape, last, means, a=a)
    backend.pool(SCALE, shape, last, given, a=a, out=scaled)
    backend.pool(SPREAD, shape, last, given_means, out=spread)
    intact = all(int((~flat.isnan()).sum()) == int((~body.isnan()).sum()) for flat, body in buffers)
    return [body for _, body in buffers], intact


@pytest.mark.parametrize("last", [False, True])
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_output_is_written_and_nothing_else(place, shape, dtype, last):
    """By vectors where addresses allow, one by one where they do not, and both as on the CPU."""
    expected = None
    if not cpu.MISSING:
        with torch.device("cpu"):
            expected, _ = run_all(shape, last, dtype, cpu)
    for shift in (0, 1):
        results, intact = run_all(shape, last, dtype, shift=shift)
        assert intact and all(not r.isnan().any() for r in results)
        for result, other in zip(results, expected or results):
            torch.testing.assert_close(result.cpu(), other.cpu(), rtol=2 * torch.finfo(result.dtype).eps, atol=1e-6)


@dtypes
def test_the_same_input_gives_the_same_bits(place, dtype):
    for shape in SHAPES[2:8]:
        one, two = (run_all(shape, True, dtype)[0] for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_the_order_of_events_does_not_matter(chip):
    for shape in SHAPES[2:8]:
        for last in (False, True):
            results = []
            for otherwise in (False, True):
                chip.emulate(*H200, otherwise)
                results.append(run_all(shape, last, BF16)[0])
            assert all(torch.equal(a, b) for a, b in zip(*results))


def test_one_sample_that_is_not_finite_stays_alone(place):
    h = torch.randn(3, 8, 4, 4)
    h[1, 0, 0, 0] = float("nan")
    for layout in LAYOUTS.values():
        means = cdn_kernels.channel_mean(h.contiguous(memory_format=layout), impl="cuda")
        assert means.isnan().nonzero().tolist() == [[1, 0]]
        assert OPS.sample_square(h.contiguous(memory_format=layout), "cuda").isnan().tolist() == [False, True, False]


def test_what_the_kernels_do_not_take_is_refused(place):
    x = torch.ones(1, 4, 1, 1)
    for call in (lambda: cuda.gelu(7, x, None, None, x, None), lambda: cuda.pool(7, x.shape, False, x, a=x)):
        with pytest.raises(RuntimeError, match="out of range"):
            call()
    for shape in ((1, 1 << 15, 1 << 15), (1 << 20, 1 << 10, 4)):
        with pytest.raises(ValueError, match=r"2\^30 values or more, or a batch as many channels"):
            cuda._workspace(x, cuda.LIBRARY.cdn_cuda_pool_workspace(MEAN, TYPES[BF16], *shape, 1))


# ------------------------------------------------------------------------------------------------------------
# Networks
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, rtol", [(F64, 1e-9), (F32, 1e-4)], ids=str)
def test_losses_of_training_are_those_of_the_reference(place, dtype, rtol):
    def losses(impl, device):
        torch.manual_seed(0)
        with torch.device("cpu"):
            model = cdn.gradresnet_small(10, 1, width=8).to(device, dtype).to(memory_format=torch.channels_last)
            x, labels = torch.rand(4, 1, 8, 8).to(device, dtype), torch.arange(4).to(device)
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        result = []
        for step in range(3):
            optimizer.zero_grad()
            loss, _ = cdn.joint_step(model, x, labels, NoiseLevels(clean_share=0.25), Noise(0, step), impl=impl)
            optimizer.step()
            result.append(float(loss))
        return result

    assert set(dispatch.fused_backends(place, "cuda").values()) == {"cuda"}
    found = losses("cuda", place)
    assert found == pytest.approx(losses("reference", place), rel=rtol) and len(set(found)) == 3
