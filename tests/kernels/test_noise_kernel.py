"""The noise kernels of the CPU library against the reference, bit by bit where that is promised."""

import pytest
import torch
import torch._dynamo.testing

from cdn_kernels import Noise, NoiseLevels, denoising_loss, reference, sample_noise, sample_sigma, standard_normal
from cdn_kernels.backends import cpu
from cdn_kernels.noise import CLEAN_LAWS, LAWS
from tests.kernels.noises import (
    KEY,
    LEVELS,
    assert_images_get_the_noise_of_their_places,
    assert_words_are_those_of_the_reference,
)

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

SIGNED = (KEY.seed, KEY.offset)
OFFSET = torch.tensor(3)
SHAPES = [(3, 1), (2, 3), (5, 5), (1, 105), (4, 3, 32, 32), (2, 1024), (2, 1025), (1, 5000), (7,), (0, 3), (2, 0)]
LAYOUT_SHAPES = [(2, 3, 8, 8), (3, 5, 7, 3), (2, 300, 3, 3), (1, 2, 40, 40), (2, 1, 4, 4), (2, 6, 1, 1)]
SIGMAS = [
    0.25,
    torch.tensor(0.25),
    torch.full((3,), 0.25),
    torch.full((3,), 0.25).double(),
    torch.tensor([0.25]).expand(3),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Logarithm, square root, sine or cosine and their product, each within an ulp on either side of the
# comparison.
ULPS = 8


def at(places):
    """Return the key for images at places of a batch."""
    return Noise(KEY.seed, KEY.offset, places)


def raw_normals(shape, dtype=torch.float32, **options):
    eps = torch.empty(shape, dtype=dtype)
    cpu.add_noise(None, None, eps, *SIGNED, **options)
    return eps


@pytest.mark.parametrize("capability", cpu.USABLE)
@pytest.mark.parametrize("stream", [reference.NORMAL_STREAM, reference.LEVEL_STREAM])
def test_words_are_equal_bit_for_bit(capability, stream):
    draw = lambda batch, blocks: cpu.random_words(batch, blocks, *SIGNED, stream, capability)
    assert_words_are_those_of_the_reference(draw, stream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_equal_the_reference_to_a_few_ulp(dtype):
    eps = standard_normal((16, 3, 32, 32), KEY, dtype=dtype, impl="cpu")
    expected = reference.standard_normal((16, 3, 32, 32), KEY, dtype)
    torch.testing.assert_close(eps, expected, rtol=ULPS / 2 * torch.finfo(dtype).eps, atol=0)


def test_float32_normals_are_as_exact_as_the_reference():
    truth = reference.standard_normal((16, 3, 32, 32), KEY, torch.float64)
    own = (standard_normal(truth.shape, KEY, impl="cpu").double() - truth).abs().max()
    theirs = (reference.standard_normal(truth.shape, KEY).double() - truth).abs().max()
    assert own <= 1.5 * theirs


@pytest.mark.parametrize("dtype", DTYPES)
def test_variants_give_the_same_bits(dtype):
    x, real = torch.randn(3, 2101).to(dtype), reference.compute_dtype(dtype)
    sigma, results = torch.rand(3, dtype=real), []
    for capability in cpu.USABLE:
        y = torch.empty_like(x)
        cpu.add_noise(x, sigma, y, *SIGNED, capability=capability)
        results.append(y)
    assert all(torch.equal(results[0], y) for y in results)


def test_threads_do_not_change_the_result():
    one, two, three = (raw_normals((3, 40001), threads=n) for n in (1, 2, 3))
    assert torch.equal(one, two) and torch.equal(one, three)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_images_plus_noise_equal_the_reference(shape, dtype):
    torch.manual_seed(0)
    x, sigma = torch.rand(shape).to(dtype), torch.rand(shape[0])
    y, returned = sample_noise(x, sigma, KEY, impl="cpu")
    expected, expected_sigma = sample_noise(x, sigma, KEY, impl="reference")
    assert y.shape == x.shape and y.dtype == dtype and torch.equal(returned, expected_sigma)
    # Normals are below 6.8; what differs a little before the rounding to half precision may differ by a unit
    # after it.
    atol = 6.8 * ULPS / 2 * torch.finfo(reference.compute_dtype(dtype)).eps
    torch.testing.assert_close(y, expected, atol=atol, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_to_nearest_even(dtype):
    # With sigma = 0 what is left is x, through load, float arithmetic and store; every bit pattern there is.
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, -1)
    y, _ = sample_noise(patterns, 0.0, KEY, impl="cpu")
    torch.testing.assert_close(y, patterns, rtol=0, atol=0, equal_nan=True)
    # And with the noise drawn in float32 as the truth, over many magnitudes.
    for scale in (1e-9, 1e-7, 1e-5, 1.0, 3e4, 1e38):
        y, _ = sample_noise(torch.zeros(1, 4096, dtype=dtype), scale, KEY, impl="cpu")
        exact = raw_normals((1, 4096)) * torch.tensor(scale)
        assert torch.equal(y, exact.to(dtype))


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drawn_levels_equal_the_reference(levels, dtype):
    sigma = sample_sigma(1000, KEY, levels, dtype=dtype, impl="cpu")
    expected = reference.sample_sigma(1000, KEY, levels, dtype)
    # Two libraries' exponentials may differ in the last place of a double.
    torch.testing.assert_close(sigma, expected, rtol=4 * 2.0**-52 if dtype == torch.float64 else 0, atol=0)
    x = torch.rand(6, 5, dtype=dtype)
    y, drawn = sample_noise(x, levels, KEY, impl="cpu")
    assert torch.equal(drawn, sigma[:6]) and not drawn.requires_grad
    assert torch.equal(y[drawn == 0], x[drawn == 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LAYOUT_SHAPES, ids=str)
def test_layouts_get_the_same_noise_and_are_kept(shape, dtype):
    x, sigma = torch.rand(shape).to(dtype), torch.rand(shape[0])
    expected, _ = sample_noise(x, sigma, KEY, impl="cpu")
    last = x.to(memory_format=torch.channels_last)
    y, _ = sample_noise(last, sigma, KEY, impl="cpu")
    assert torch.equal(y, expected) and y.stride() == last.stride()
    eps = standard_normal(shape, KEY, dtype=dtype, memory_format=torch.channels_last, impl="cpu")
    assert torch.equal(eps, standard_normal(shape, KEY, dtype=dtype, impl="cpu"))
    assert eps.is_contiguous(memory_format=torch.channels_last)


def test_other_layouts_are_made_contiguous():
    x = torch.rand(6, 5, 4)
    for view in (x.transpose(0, 2), x[::2], x[:, :, 1:], x[:1].expand(3, 5, 4), x.mT):
        y, _ = sample_noise(view, 0.5, KEY, impl="cpu")
        assert y.is_contiguous() and torch.equal(y, sample_noise(view.contiguous(), 0.5, KEY, impl="cpu")[0])


@pytest.mark.parametrize("sigma", SIGMAS, ids=["float", "0-d", "per image", "double", "expanded"])
def test_sigma_may_be_a_number_or_one_per_image(sigma):
    x = torch.rand(3, 10)
    y, returned = sample_noise(x, sigma, KEY, impl="cpu")
    assert torch.equal(y, sample_noise(x, torch.full((3,), 0.25), KEY, impl="cpu")[0])
    assert returned.dtype == torch.float32 and returned.tolist() == [0.25] * 3


def test_explicit_noise_is_plain_arithmetic():
    x, eps = torch.rand(3, 4), torch.randn(3, 4, requires_grad=True)
    y, _ = sample_noise(x, 0.5, eps)
    assert torch.equal(y, x + 0.5 * eps) and y.requires_grad


@pytest.mark.parametrize(
    "size, channels",
    [(n, 0) for n in (1, 3, 63, 64, 65, 1023, 1025)] + [(1, 1), (63, 3), (65, 5), (1023, 3), (1025, 5)],
)
def test_nothing_is_written_beyond_the_output(size, channels):
    for dtype in DTYPES:
        buffer = torch.full((2 * size + 128,), 7.0, dtype=dtype)
        cpu.add_noise(None, None, buffer[64:-64].view(2, size), *SIGNED, channels)
        assert (buffer[:64] == 7).all() and (buffer[-64:] == 7).all() and (buffer[64:-64] != 7).all()


def test_gradients_of_the_kernel_to_second_order():
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    sigma = torch.rand(3, dtype=torch.float64, requires_grad=True)

    def noisy(x, sigma):
        return sample_noise(x, sigma, KEY, impl="cpu")[0]

    assert torch.autograd.gradcheck(noisy, (x, sigma), check_batched_grad=True, check_forward_ad=True)
    # The operation is linear, so its second derivatives show in a nonlinear function of it.
    assert torch.autograd.gradgradcheck(lambda *a: noisy(*a).sin(), (x, sigma), check_batched_grad=True)
    assert torch.autograd.gradcheck(noisy, (x, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)))


def test_gradients_with_drawn_levels_to_second_order():
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    y, sigma = sample_noise(x, NoiseLevels(), KEY, impl="cpu")
    assert y.requires_grad and not sigma.requires_grad

    def noisy(x):
        return sample_noise(x, NoiseLevels(clean_share=0.3), KEY, impl="cpu")[0]

    assert torch.autograd.gradcheck(noisy, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: noisy(x).sin(), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_get_the_noise_of_their_places(dtype, layout):
    assert_images_get_the_noise_of_their_places("cpu", "cpu", torch.rand(5, 3, 8, 8).to(dtype).to(memory_format=layout))


def test_gradients_are_drawn_again_at_the_places():
    noise = at(torch.tensor([7, 0, 1 << 31]))
    x, sigma = (torch.rand(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2, 2), (3,)))
    noisy = lambda x, sigma: sample_noise(x, sigma, noise, impl="cpu")[0]
    assert torch.autograd.gradcheck(noisy, (x, sigma), check_batched_grad=True, check_forward_ad=True)
    score = torch.rand(3, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = lambda s: denoising_loss(s, sigma.detach(), noise, impl="cpu")
    assert torch.autograd.gradcheck(loss, score) and torch.autograd.gradgradcheck(loss, score)
    y = torch.func.vmap(lambda x: sample_noise(x, 0.5, noise, impl="cpu")[0])(x.detach().expand(2, 3, 2, 2))
    torch.testing.assert_close(y[1], sample_noise(x.detach(), 0.5, noise, impl="cpu")[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_drawing_levels_in_the_same_call_changes_nothing(dtype, layout):
    x = torch.rand(3, 5, 7, 3).to(dtype).to(memory_format=layout)
    levels = NoiseLevels(clean_share=0.3)
    y, sigma = sample_noise(x, levels, KEY, impl="cpu")
    given = sample_sigma(3, KEY, levels, dtype=sigma.dtype, impl="cpu")
    assert torch.equal(sigma, given) and torch.equal(y, sample_noise(x, given, KEY, impl="cpu")[0])
    assert y.stride() == x.stride()


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(2, 3, 4, 4),
        torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.rand(4, 1).expand(4, 3),
        torch.rand(0, 3),
        torch.rand(3).bfloat16(),
    ],
    ids=["contiguous", "channels_last", "expanded", "empty", "vector"],
)
def test_add_noise_is_a_proper_operation(x):
    x = x.detach().requires_grad_()
    sigma = torch.rand(x.shape[0], requires_grad=True)
    for places in (None, torch.arange(len(x)).flip(0)):
        key = -5, OFFSET, 2, places, "cpu"
        torch.library.opcheck(torch.ops.cdn_kernels.add_noise.default, (x, sigma, *key))
        for clean in CLEAN_LAWS:
            law = "uniform", 0.1, 1.0, 0.2, clean
            torch.library.opcheck(torch.ops.cdn_kernels.sample_noise.default, (x, *law, *key))


def test_factories_are_proper_operations():
    device = torch.device("cpu")
    for places in (None, torch.tensor([4, 2])):
        key = 5, OFFSET, 3, places
        torch.library.opcheck(
            torch.ops.cdn_kernels.standard_normal.default,
            ([2, 3, 4, 4], *key, torch.float32, device, torch.channels_last, "cpu"),
        )
        torch.library.opcheck(
            torch.ops.cdn_kernels.sample_sigma.default,
            (2, "uniform", 0.1, 1.0, 0.5, "stratified", *key, torch.float64, device, "cpu"),
        )


def test_compiles_without_a_graph_break_and_once_for_all_steps():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(x, seed, offset):
        return sample_noise(x, NoiseLevels(), Noise(seed, offset))

    x = torch.rand(2, 3, 4, 4)
    for offset in range(2, 8):
        y, sigma = step(x, KEY.seed, offset)
        expected, expected_sigma = sample_noise(x, NoiseLevels(), Noise(KEY.seed, offset))
        assert torch.equal(y, expected) and torch.equal(sigma, expected_sigma)
    assert counter.frame_count <= 2


def test_compiled_gradients_equal_eager_ones():
    x, sigma = torch.rand(2, 5, requires_grad=True), torch.rand(2, requires_grad=True)

    def loss(x, sigma):
        return sample_noise(x, sigma, KEY, impl="cpu")[0].square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, expected in zip(*(torch.autograd.grad(f(x, sigma), (x, sigma)) for f in (compiled, loss))):
        torch.testing.assert_close(got, expected)


def test_function_transforms_share_the_noise_of_the_key():
    x = torch.rand(4, 2, 3)
    y = torch.func.vmap(lambda x: sample_noise(x, 0.5, KEY, impl="cpu")[0])(x)
    for got, image in zip(y, x):
        torch.testing.assert_close(got, sample_noise(image, 0.5, KEY, impl="cpu")[0])
    slope = torch.func.grad(lambda s: sample_noise(x[0], s, KEY, impl="cpu")[0].sum())(torch.tensor(0.5))
    torch.testing.assert_close(slope, standard_normal((2, 3), KEY).sum())


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_an_offset_in_a_tensor_is_that_offset(impl):
    held = torch.tensor(KEY.offset)
    for _ in range(2):
        keys = Noise(KEY.seed, held), Noise(KEY.seed, int(held))
        pairs = [
            (
                *sample_noise(X, NoiseLevels(), key, impl=impl),
                standard_normal((2, 5), key, impl=impl),
                sample_sigma(3, key, NoiseLevels(), impl=impl),
                denoising_loss(X, 0.5, key, impl=impl),
            )
            for key in keys
        ]
        assert all(torch.equal(mine, expected) for mine, expected in zip(*pairs))
        held += 1 << 40


def test_no_grad_and_inference_mode():
    x = torch.rand(2, 5, requires_grad=True)
    expected = sample_noise(x, 0.5, KEY, impl="cpu")[0]
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y, _ = sample_noise(x, 0.5, KEY, impl="cpu")
        assert torch.equal(y, expected) and not y.requires_grad


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: sample_noise([1.0], 1.0, KEY), TypeError, "x must be a tensor"),
        (lambda: sample_noise(X.long(), 1.0, KEY), TypeError, "x must be float32, .* got torch.int64"),
        (lambda: sample_noise(X[0, 0], 1.0, KEY), ValueError, r"x must have shape \[B, ...\], got a 0-d tensor"),
        (lambda: sample_noise(X, torch.ones(3), KEY), ValueError, r"sigma must be .* \[2\], got \[3\]"),
        (lambda: sample_noise(X, torch.ones(2, 1), KEY), ValueError, r"sigma must be .* got \[2, 1\]"),
        (lambda: sample_noise(X, 1.0, 17), TypeError, "noise must be a Noise.* got int"),
        (lambda: sample_noise(X, NoiseLevels(), X), TypeError, "noise must be a Noise.* got a tensor"),
        (lambda: sample_noise(X, 1.0, X[:1]), ValueError, r"noise must have .* images, \[2, 3\], got \[1, 3\]"),
        (lambda: sample_noise(X, 1.0, X.to("meta")), ValueError, "noise must be on .* cpu, got meta"),
        (
            lambda: sample_noise(X, 1.0, KEY, impl="metal"),
            ValueError,
            "auto, reference, cpu, triton, cuda, got 'metal'",
        ),
        (
            lambda: sample_noise(X, 1.0, at(torch.arange(3))),
            ValueError,
            r"places must be one per image, \[2\], got \[3\]",
        ),
        (lambda: standard_normal((2, 3), at(torch.arange(1))), ValueError, r"places must be .* \[2\], got \[1\]"),
        (
            lambda: sample_sigma(3, at(torch.arange(2)), NoiseLevels()),
            ValueError,
            r"places must be .* \[3\], got \[2\]",
        ),
        (
            lambda: sample_noise(X, 1.0, at(torch.arange(2).to("meta"))),
            ValueError,
            "places must be on the device of the noise, cpu, got meta",
        ),
        (
            lambda: sample_noise(X, 1.0, Noise(1, OFFSET.to("meta"))),
            ValueError,
            "offset must be on the .* cpu, got meta",
        ),
        (lambda: sample_noise(X.to("meta"), 1.0, KEY, impl="cpu"), RuntimeError, "on a CPU, got device meta"),
        (lambda: standard_normal((), KEY), ValueError, r"shape must be \[B, ...\]"),
        (lambda: standard_normal((2, 3), 5), TypeError, "noise must be a Noise"),
        (lambda: standard_normal((2, 3), KEY, dtype=torch.int32), TypeError, "dtype must be float32"),
        (lambda: standard_normal((2, 3), KEY, memory_format=torch.preserve_format), ValueError, "memory_format"),
        (lambda: standard_normal((2, 3), KEY, memory_format=torch.channels_last), ValueError, "4-d"),
        (lambda: sample_sigma(3, KEY, 0.5), TypeError, "levels must be NoiseLevels, got float"),
        (lambda: sample_sigma(3, KEY, NoiseLevels(), dtype=torch.float16), TypeError, "float32 or float64"),
    ],
)
def test_errors_name_the_argument_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_library_refuses_numbers_it_does_not_know():
    y = torch.empty(1, 4)
    for kind, capability in ((0, len(cpu.CAPABILITIES)), (0, -1), (len(cpu.TYPES), 0)):
        assert cpu.LIBRARY.cdn_add_noise(None, None, y.data_ptr(), kind, 1, 4, 0, 1, 2, 0, None, 1, capability) == 1
    levels = torch.empty(1)
    for law, clean in ((len(LAWS), 0), (0, len(CLEAN_LAWS)), (0, -1)):
        assert cpu.LIBRARY.cdn_sample_sigma(levels.data_ptr(), 0, 1, law, 0.1, 1.0, 0.5, clean, 1, 2, 0, None) == 1
