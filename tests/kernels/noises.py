"""What the tests of the noise share, whatever the backend: a key, levels, and checks against other backends."""

import torch
from torch.autograd import gradcheck, gradgradcheck

from cdn_kernels import Noise, NoiseLevels, denoising_loss, philox, sample_noise, sample_sigma, standard_normal
from cdn_kernels.noise import CLEAN_LAWS, PLACES
from tests.kernels.oracle import derivatives, in_layouts

KEY = Noise(0xFEDCBA9876543210, 0x123456789)
LEVELS = [
    NoiseLevels(),
    NoiseLevels("uniform", 0.1, 2.0),
    NoiseLevels("fixed", high=0.3),
    *(NoiseLevels(clean_share=share, clean=law) for law in CLEAN_LAWS for share in (0.4, 1.0)),
    # Rounded down to 0, and to the even 2, in units of 2**-32; and all but one unit.
    *(NoiseLevels(clean_share=share) for share in (2.0**-33, 1.5 * 2.0**-32, 1 - 2.0**-32)),
]


def assert_words_are_those_of_the_reference(draw, stream, device="cpu"):
    """Compare the random words of a stream, bit for bit, with those that draw(batch, blocks) returns."""
    for batch, blocks in ((1, 1), (3, 5), (2, 33), (2, 300), (40, 1)):
        assert torch.equal(draw(batch, blocks), philox.random_words(batch, blocks, KEY, stream, device))


def assert_levels_are_those_of_the_cpu(impl, device, levels):
    """Check the levels that a backend draws on a device, and images with noise of them, against the CPU's kernels."""
    for dtype in (torch.float32, torch.float64):
        sigma = sample_sigma(300, KEY, levels, dtype=dtype, device=device, impl=impl)
        expected = sample_sigma(300, KEY, levels, dtype=dtype, device="cpu", impl="cpu")
        torch.testing.assert_close(sigma.cpu(), expected, rtol=4 * 2.0**-52 if dtype == torch.float64 else 0, atol=0)
    x = torch.rand(6, 5)
    both = sample_noise(x, levels, KEY, impl=impl), sample_noise(x.cpu(), levels, KEY, impl="cpu")
    for mine, expected in zip(*both):
        assert torch.equal(mine.cpu(), expected)


def assert_images_get_the_noise_of_their_places(impl, device, x):
    """Check that parts of a batch, and any order of it, draw, and draw again, what each image draws in the whole."""
    levels, count = NoiseLevels(clean_share=0.4), len(x)
    drawn = lambda x, noise: (
        *sample_noise(x, levels, noise, impl=impl),
        standard_normal(x.shape, noise, dtype=x.dtype, device=device, impl=impl),
        sample_sigma(len(x), noise, levels, device=device, impl=impl),
    )
    for first in (0, (1 << 32) - 2):  # from which places go on at 0
        whole = Noise(KEY.seed, KEY.offset, first)
        expected = drawn(x, whole)
        assert len(torch.unique(expected[2].flatten(1), dim=0)) == count
        for part in (slice(0, 2), slice(2, count)):
            shard = Noise(KEY.seed, KEY.offset, (first + part.start) % PLACES)
            assert all(torch.equal(mine, all_of[part]) for mine, all_of in zip(drawn(x[part], shard), expected))
        index = torch.tensor([3, 0, 4], device=device)
        chosen = Noise(KEY.seed, KEY.offset, (index + first) % PLACES)
        assert torch.equal(whole.chosen(index).places, chosen.places)
        assert all(torch.equal(mine, all_of[index]) for mine, all_of in zip(drawn(x[index], chosen), expected))
    errors = lambda x, noise: torch.stack([denoising_loss(row[None], 0.5, k, impl=impl) for row, k in zip(x, noise)])
    places = [Noise(KEY.seed, KEY.offset, int(i)) for i in index]
    torch.testing.assert_close(
        denoising_loss(x[index], 0.5, Noise(KEY.seed, KEY.offset, index), impl=impl), errors(x[index], places).mean()
    )


def assert_noise_is_that_of_the_cpu(impl, device, shape, dtype):
    """Compare images with noise, and noise alone, with the CPU's kernels: to the bit except for float64."""
    images, sigma = torch.rand(shape).to(dtype), torch.rand(shape[0])
    close = dict(rtol=1e-14, atol=1e-15) if dtype == torch.float64 else dict(rtol=0, atol=0)
    for x in in_layouts(images):
        y, _ = sample_noise(x, sigma, KEY, impl=impl)
        expected, _ = sample_noise(x.cpu(), sigma.cpu(), KEY, impl="cpu")
        torch.testing.assert_close(y.cpu(), expected, **close)
        assert y.stride() == expected.stride()
    eps = standard_normal(shape, KEY, dtype=dtype, device=device, impl=impl)
    expected = standard_normal(shape, KEY, dtype=dtype, device="cpu", impl="cpu")
    torch.testing.assert_close(eps.cpu(), expected, **close)


def assert_denoising_is_that_of_the_cpu(impl, shape, dtype, rtol):
    """Compare the denoising loss and its derivatives with the CPU's kernels; rtol is that of float64."""
    scores, sigma = torch.randn(shape).to(dtype), torch.rand(shape[0]) + 0.1
    sigma[1:2] = 0.0
    close = dict(rtol=rtol, atol=1e-14) if dtype == torch.float64 else dict(rtol=1e-6, atol=1e-9)
    for score in in_layouts(scores):
        mine = derivatives(lambda s: denoising_loss(s, sigma, KEY, impl=impl), [score])
        theirs = derivatives(lambda s: denoising_loss(s, sigma.cpu(), KEY, impl="cpu"), [score.cpu()])
        for own, expected in zip(mine, theirs):
            torch.testing.assert_close(own.cpu(), expected, **close)


def assert_denoising_loss_passes_numerical_checks(impl):
    score, sigma = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0.0, 0.7])
    loss = lambda s: denoising_loss(s, sigma, KEY, impl=impl)
    assert gradcheck(loss, score) and gradgradcheck(loss, score)
