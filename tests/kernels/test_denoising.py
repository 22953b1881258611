"""The denoising loss on the CPU: the reference's, with the noise drawn again from its key."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import denoising_loss, reference
from cdn_kernels.backends import cpu
from tests.kernels.noises import KEY
from tests.kernels.oracle import assert_as_exact_as_eager

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

OPS = torch.ops.cdn_kernels
SHAPES = [(3, 1), (2, 7), (4, 3, 32, 32), (2, 1025), (3, 5, 7, 3), (2, 300, 3, 3)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def sigmas(batch, dtype=torch.float32):
    sigma = torch.rand(batch, dtype=dtype) + 0.1
    sigma[0] = 0.0
    return sigma


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_is_as_exact_as_eager(shape, dtype):
    score, sigma = torch.randn(shape).to(dtype), sigmas(shape[0])
    inputs = [score] + ([score.contiguous(memory_format=torch.channels_last)] if len(shape) == 4 else [])
    for score in inputs:
        assert_as_exact_as_eager(
            lambda s: denoising_loss(s, sigma, KEY, impl="cpu"),
            lambda s: denoising_loss(s, sigma, KEY, impl="reference"),
            [score],
            ulps=8,
        )


def test_loss_passes_numerical_checks():
    score = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    # At sigma = 0 an image stops counting: no derivative by sigma there.
    for sigma in (sigmas(3, torch.float64), (sigmas(3, torch.float64) + 0.1).requires_grad_(), 0.5):
        loss = lambda *inputs: denoising_loss(inputs[0], sigma, KEY)
        inputs = (score, sigma) if isinstance(sigma, torch.Tensor) and sigma.requires_grad else (score,)
        assert gradcheck(loss, inputs) and gradgradcheck(loss, inputs)
    factors = torch.randn(3, dtype=torch.float64, requires_grad=True)
    sigma = sigmas(3, torch.float64)
    key = KEY.seed - (1 << 64), KEY.position("cpu"), 0, None, "cpu"
    pull = lambda s, f: OPS.denoising_error_backward(s, sigma, f, *key)
    assert gradcheck(pull, (score, factors))


def test_it_takes_the_noise_that_was_added():
    x = torch.rand(4, 3, 8, 8)
    y, sigma = cdn_kernels.sample_noise(x, 0.3, KEY)
    perfect = (x - y) / sigma.view(-1, 1, 1, 1) ** 2
    assert float(denoising_loss(perfect, sigma, KEY)) < 1e-8
    assert float(denoising_loss(torch.zeros_like(x), sigma, KEY)) == pytest.approx(1, abs=0.1)
    eps = reference.standard_normal(x.shape, KEY)
    torch.testing.assert_close(denoising_loss(y, sigma, eps), denoising_loss(y, sigma, KEY))


def test_images_without_noise_do_not_count():
    score = torch.randn(2, 5, requires_grad=True)
    loss = denoising_loss(score, torch.zeros(2), KEY)
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(score.grad, torch.zeros(2, 5))
    nan = torch.tensor([[float("nan")] * 5, [1.0] * 5])
    assert denoising_loss(nan, torch.tensor([0.0, 1.0]), KEY).isfinite()
    assert not denoising_loss(nan, torch.tensor([1.0, 1.0]), KEY).isfinite()


@pytest.mark.parametrize("capability", cpu.USABLE)
def test_neither_processor_nor_threads_change_the_result(capability):
    score, sigma = torch.randn(4, 20001), sigmas(4)
    results = []
    for options in (dict(capability=capability, threads=1), dict(threads=1), dict(threads=2), dict(threads=3)):
        errors, gradient = torch.full((4,), float("nan")), torch.full_like(score, float("nan"))
        cpu.denoising(score, sigma, 1, 2, errors=errors, **options)
        cpu.denoising(score, sigma, 1, 2, factors=torch.ones(4), gradient=gradient, **options)
        results.append((errors, gradient))
    for errors, gradient in results:
        torch.testing.assert_close(errors, results[1][0], rtol=1e-6, atol=0)
        assert torch.equal(gradient, results[1][1])


def test_registration_passes_opcheck():
    score, sigma, factors = torch.randn(2, 3, 4, 4, requires_grad=True), sigmas(2), torch.rand(2, requires_grad=True)
    for places in (None, torch.tensor([3, 1])):
        key = 1, torch.tensor(2), 5, places, "cpu"
        torch.library.opcheck(OPS.denoising_error, (score, sigma, *key))
        torch.library.opcheck(OPS.denoising_error_backward, (score, sigma, factors, *key))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda s: denoising_loss(s, torch.ones(3), KEY),
            r"sigma must be a number or one value per image, \[2\], got \[3\]",
        ),
        (
            lambda s: denoising_loss(s, 1.0, torch.ones(2, 3)),
            r"noise must have the shape of the images, \[2, 4\], got \[2, 3\]",
        ),
        (lambda s: denoising_loss(s.long(), 1.0, KEY), "score must be float32, .* got torch.int64"),
        (lambda s: denoising_loss(s, 1.0, "eps"), "noise must be a Noise"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(torch.ones(2, 4))
