"""What the tests of our own convolutions share, whatever the backend: problems in poisoned memory, and checks."""

import contextlib
import functools

import torch

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT
from tests.kernels.oracle import assert_as_exact_as_eager, assert_rounded_once

MAPS = (CONV_FORWARD, CONV_INPUT, CONV_WEIGHT)
MARGIN = 64


@contextlib.contextmanager
def float32_in(precision):
    """Let float32 be multiplied in "ieee" or "tf32", by torch and by kernels that follow it."""
    convolutions = torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, precision
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def nhwc(*shape, fill=None, dtype=torch.bfloat16):
    """Return images stored channels last in the middle of a larger buffer of NaN: (images, buffer)."""
    batch, channels, height, width = shape
    buffer = torch.full((batch * channels * height * width + 2 * MARGIN,), float("nan"), dtype=dtype)
    images = buffer[MARGIN:-MARGIN].view(batch, height, width, channels).permute(0, 3, 1, 2)
    if fill is not None:
        images.copy_(fill)
    return images, buffer


def intact(buffer):
    """Tell whether nothing was written around images from nhwc."""
    return bool(buffer[:MARGIN].isnan().all() and buffer[-MARGIN:].isnan().all())


def problem(shape, size, stride, seed=0, dtype=torch.bfloat16):
    """Return the operands of the three maps, with tensors like their results, and the shapes of x and the filters."""
    batch, inputs, outputs, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: nhwc(*shape, fill=torch.randn(shape, generator=generator, device="cpu"), dtype=dtype)[0]
    x, weight = draw(batch, inputs, height, width), draw(outputs, inputs, size, size)
    g = draw(batch, outputs, -(-height // stride), -(-width // stride))
    operands = {CONV_FORWARD: (x, weight, g), CONV_INPUT: (g, weight, x), CONV_WEIGHT: (x, g, weight)}
    return operands, (x.shape, weight.shape)


def exact(kind, operands, size, stride):
    """Return the result in float64 and the same with the absolute values of the operands, which bounds rounding."""
    first, second, like = (t.double() for t in operands[kind])

    def convolve(first, second):
        if kind == CONV_FORWARD:
            return torch.nn.functional.conv2d(first, second, None, stride, size // 2)
        x, weight, g = (like, second, first) if kind == CONV_INPUT else (first, like, second)
        mask = [kind == CONV_INPUT, kind == CONV_WEIGHT, False]
        options = [stride] * 2, [size // 2] * 2, [1, 1], False, [0, 0], 1
        return torch.ops.aten.convolution_backward(g, x, weight, None, *options, mask)[kind - 1]

    return convolve(first, second), convolve(first.abs(), second.abs())


def run(conv2d, kind, operands, shapes, stride, **options):
    """Run one map of a backend into a poisoned buffer; return its result after checking the margins."""
    first, second, like = operands[kind]
    out, buffer = nhwc(*like.shape, dtype=like.dtype)
    conv2d(kind, first, second, out, shapes, stride, **options)
    assert intact(buffer)
    return out


def assert_what_follows_a_map_is_exact(conv2d, kind, operands, shapes, size, stride):
    """Check all that a map to images can end with: sums, GELU, and products with its slope.

    Returns:
        (a sum, GELU of it), as the map has written them.
    """
    first, second, like = operands[kind]
    images = lambda **options: nhwc(*like.shape, dtype=like.dtype, **options)
    u, added = (images(fill=torch.randn(like.shape))[0] for _ in range(2))
    product, absolute = exact(kind, operands, size, stride)
    result = functools.partial(run, conv2d, kind, operands, shapes, stride)

    activation, buffer = images()
    out = result(added=added, activation=activation)
    assert intact(buffer)
    assert_rounded_once(out, product + added.double(), absolute, added.double().abs())
    assert_rounded_once(activation, reference.gelu(out.double()), out.double().abs())
    alone, _ = images()
    conv2d(kind, first, second, None, shapes, stride, added=added, activation=alone)
    assert torch.equal(alone, activation)

    slope = u.double().requires_grad_()
    (slope,) = torch.autograd.grad(reference.gelu(slope).sum(), slope)
    # |phi'| is less than 1.2.
    assert_rounded_once(result(u=u), slope * product, 1.2 * absolute)
    kept, buffer = images()
    both = result(u=u, added=added, product=kept)
    assert intact(buffer)
    assert torch.equal(kept, result()) and torch.equal(both, result(u=u, added=added))
    assert_rounded_once(kept, product, absolute)
    assert_rounded_once(both, slope * product + added.double(), 1.2 * absolute, added.double().abs())
    return out, activation


def assert_nan_stays_where_it_belongs(conv2d, kind, shape, row, column, dtype=torch.bfloat16, **options):
    """Check that filters of 3x3 carry a NaN of the second sample to the pixels and taps that see it, no further."""
    operands, shapes = problem(shape, 3, 1, dtype=dtype)
    operands[kind][0][1, 2, row, column] = float("nan")
    out = run(conv2d, kind, operands, shapes, 1, **options)
    mask = torch.zeros_like(out, dtype=torch.bool)
    if kind == CONV_WEIGHT:
        mask[:, 2] = True
    else:
        mask[1, :, row - 1 : row + 2, column - 1 : column + 2] = True
    assert torch.equal(out.isnan(), mask)


def maps_that_run(monkeypatch, kernels):
    """Let the kernels of a backend note what they run: return a list of (map, the names of what else it is given)."""
    calls = []
    kernel = kernels.conv2d

    def conv2d(kind, *arguments, **options):
        calls.append((kind, *(name for name, given in options.items() if given is not None)))
        return kernel(kind, *arguments, **options)

    monkeypatch.setattr(kernels, "conv2d", conv2d)
    return calls


def assert_convolutions_are_as_exact_as_eager(monkeypatch, kernels, impl, inputs, stride, maps, **options):
    """Check conv2d and conv2d_gelu at all orders, and which maps the kernels of a backend run for them."""
    calls = maps_that_run(monkeypatch, kernels)
    for name in ("conv2d", "conv2d_gelu"):
        op = getattr(cdn_kernels, name)
        assert_as_exact_as_eager(
            lambda *a: op(*a, stride, impl=impl), lambda *a: op(*a, stride, impl="reference"), inputs, **options
        )
    assert {kind for kind, *_ in calls} == set(maps)


def assert_slopes_are_part_of_the_maps(monkeypatch, kernels, block, x, filters):
    """Check that all gradients by what the GELU of a pair of convolutions is taken of come out of one kernel each."""
    calls = maps_that_run(monkeypatch, kernels)
    (score,) = torch.autograd.grad(block(x.requires_grad_(), *filters).square().sum(), x, create_graph=True)
    # It keeps the product for the tangent; the backward pass after it adds what comes from there, and keeps nothing.
    assert calls == [(CONV_FORWARD, "activation"), (CONV_FORWARD,), (CONV_INPUT, "u", "product"), (CONV_INPUT,)]
    calls.clear()
    torch.autograd.grad(score.square().sum(), x)
    assert [call for call in calls if "u" in call] == [(CONV_INPUT, "u", "added")]
