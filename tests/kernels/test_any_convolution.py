"""torch's convolutions of any kind by derivatives of the first order, which are those of torch to every order."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels.ops import torch_functions
from cdn_kernels.ops.any_convolution import convolution, options_of
from cdn_kernels.ops.torch_functions import FirstOrderFunctions
from tests.kernels.oracle import tensors, third

# A function, the shapes of images, filters and bias, and options.
KINDS = {
    "1-d": (F.conv1d, (2, 3, 7), (4, 3, 3), (4,), dict(padding=1)),
    "1-d, same": (F.conv1d, (2, 3, 7), (4, 3, 5), None, dict(padding="same", dilation=2)),
    "1-d, depthwise": (F.conv1d, (2, 3, 7), (3, 1, 3), (3,), dict(groups=3)),
    "2-d": (F.conv2d, (2, 3, 5, 4), (4, 3, 3, 3), (4,), dict(padding=1)),
    "2-d, strides": (F.conv2d, (2, 3, 6, 5), (2, 3, 3, 1), None, dict(stride=(2, 1), padding=(1, 0))),
    "2-d, groups": (F.conv2d, (2, 4, 5, 5), (6, 2, 2, 2), (6,), dict(groups=2)),
    "2-d, depthwise": (F.conv2d, (2, 3, 5, 5), (6, 1, 3, 3), None, dict(groups=3, padding="same")),
    "2-d, dilated": (F.conv2d, (1, 2, 7, 7), (3, 2, 3, 3), (3,), dict(dilation=(2, 1), padding="valid")),
    "2-d, by position": (F.conv2d, (2, 2, 5, 5), (3, 2, 3, 3), None, (2, 1, 1, 1)),
    "3-d": (F.conv3d, (2, 2, 4, 4, 4), (2, 2, 3, 3, 3), (2,), dict(padding=1, stride=2)),
    "1-d, transposed": (F.conv_transpose1d, (2, 3, 5), (3, 2, 4), (2,), dict(stride=2, padding=1)),
    "2-d, transposed": (
        F.conv_transpose2d,
        (2, 4, 3, 4),
        (4, 2, 3, 3),
        (4,),
        dict(stride=2, padding=1, output_padding=1, groups=2),
    ),
    "2-d, transposed, by position": (F.conv_transpose2d, (2, 3, 3, 3), (3, 2, 3, 3), (2,), (2, 1, 1, 1, 1)),
    "3-d, transposed": (F.conv_transpose3d, (1, 2, 3, 3, 3), (2, 2, 2, 2, 2), None, dict(stride=2)),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def given(options):
    return (options, {}) if isinstance(options, tuple) else ((), options)


def functions(kind):
    """Return our convolution, torch's, and tensors for both."""
    func, x, weight, bias, options = kind
    inputs = tensors((x, weight, bias))
    positional, named = given(options)
    known = options_of(func, *inputs[:2], *positional, **named)
    ours = lambda x, weight, bias=None: convolution(x, weight, bias, known)
    theirs = lambda x, weight, bias=None: func(x, weight, bias, *positional, **named)
    return ours, theirs, inputs


@kinds
def test_derivatives(kind):
    ours, theirs, inputs = functions(kind)
    assert torch.equal(ours(*inputs), theirs(*inputs))
    assert gradcheck(ours, inputs, fast_mode=True)
    assert gradgradcheck(ours, inputs, fast_mode=True)


@kinds
def test_third_order(kind):
    ours, theirs, inputs = functions(kind)
    try:
        exact_ones = third(theirs, inputs)
    except RuntimeError as error:  # torch's own has none of transposed ones with output_padding
        assert "output_padding" in str(error)
        first = lambda *inputs: torch.autograd.grad(ours(*inputs).tanh().sum(), inputs, create_graph=True)
        assert gradgradcheck(first, inputs, fast_mode=True)
        return
    for mine, exact in zip(third(ours, inputs), exact_ones, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-11)


@kinds
@pytest.mark.parametrize("autocast", [False, True])
def test_calls_are_taken_over(monkeypatch, kind, autocast):
    """Within the block the values are torch's, and the graph is ours; of frozen filters nothing is computed."""
    monkeypatch.setattr(torch_functions, "CHOICE", "all")
    func, x, weight, bias, options = kind
    positional, named = given(options)
    x, *parameters = tensors((x, weight, bias), torch.float32 if autocast else torch.float64)
    parameters[0].requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with FirstOrderFunctions():
            mine = func(x, parameters[0], *(parameters[1:] or [None]), *positional, **named)
        theirs = func(x, parameters[0], *(parameters[1:] or [None]), *positional, **named)
    assert type(mine.grad_fn) is not type(theirs.grad_fn)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0.05 if autocast else 1e-12)
    mine.square().sum().backward()
    assert parameters[0].grad is None and x.grad is not None


LEFT = {
    "no batch": (F.conv2d, (3, 5, 5), (2, 3, 3, 3), {}),
    "padding of unequal sides": (F.conv1d, (2, 3, 7), (2, 3, 4), dict(padding="same")),
    "complex": (F.conv1d, (2, 3, 7), (2, 3, 3), {}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("func, x, weight, options", LEFT.values(), ids=LEFT)
def test_what_no_option_expresses_is_left_to_torch(monkeypatch, request, func, x, weight, options):
    monkeypatch.setattr(torch_functions, "CHOICE", "all")
    dtype = torch.complex128 if "complex" in request.node.name else torch.float64
    x, weight = tensors((x, weight), dtype)
    assert options_of(func, x, weight, **options) is None
    with FirstOrderFunctions():
        mine = func(x, weight, **options)
    theirs = func(x, weight, **options)
    assert torch.equal(mine, theirs) and type(mine.grad_fn) is type(theirs.grad_fn)


class Count(FirstOrderFunctions):
    """See which convolutions are taken over."""

    def __call__(self, func, x, weight, **options):
        x, weight = (torch.empty(shape, requires_grad=True) for shape in (x, weight))
        with self:
            node = func(x, weight, **options).grad_fn
        return "Convolution" not in type(node).__name__


@pytest.mark.parametrize(
    "func, x, weight, options, taken",
    [
        (F.conv2d, (1, 8, 8, 8), (8, 8, 3, 3), dict(padding=1), False),  # small
        (F.conv2d, (8, 64, 32, 32), (64, 64, 5, 5), {}, True),
        (F.conv2d, (8, 256, 32, 32), (256, 256, 1, 1), dict(stride=(1, 1), padding=(0, 0), dilation=2), False),
        (F.conv2d, (8, 32, 16, 16), (32, 1, 3, 3), dict(groups=32), True),
        (F.conv2d, (8, 32, 16, 16), (32, 1, 7, 7), dict(groups=32), False),
        (F.conv3d, (1, 16, 32, 32, 32), (16, 16, 3, 3, 3), {}, False),  # one image
        (F.conv3d, (4, 16, 32, 32, 32), (16, 16, 3, 3, 3), {}, True),
        # Few multiplications, of many numbers.
        (F.conv2d, (4, 4, 64, 64), (32, 4, 3, 3), dict(padding=1), True),
        (F.conv2d, (8, 64, 32, 32), (64, 64, 2, 2), dict(stride=2), True),
        (F.conv2d, (4, 64, 16, 16), (64, 64, 2, 2), dict(stride=2), False),
        (F.conv_transpose2d, (4, 64, 32, 32), (64, 32, 2, 2), dict(stride=2), True),
        (F.conv_transpose2d, (4, 64, 16, 16), (64, 32, 2, 2), dict(stride=2), False),
        (F.conv1d, (8, 16, 2048), (16, 16, 9), {}, True),
        (F.conv3d, (4, 8, 32, 16, 16), (8, 8, 3, 3, 3), {}, False),
    ],
)
def test_those_are_taken_over_that_gain(func, x, weight, options, taken):
    assert Count()(func, x, weight, **options) == taken


@pytest.mark.parametrize("scored", [None, 2])
@pytest.mark.parametrize("channels, size", [(1, 3), (3, 1), (3, 3)])
def test_channels_last_stays_where_a_size_is_one(monkeypatch, channels, size, scored):
    monkeypatch.setattr(torch_functions, "CHOICE", "all")
    last = torch.channels_last
    layer = torch.nn.Conv2d(channels, 4, size, padding=size // 2).to(memory_format=last)
    y = torch.randn(4, channels, 5, 5).to(memory_format=last).clone(memory_format=last)
    strides = []

    def network(y):
        u = layer(y)
        u.register_hook(lambda g: strides.append(g.is_contiguous(memory_format=last)))
        strides.append(u.is_contiguous(memory_format=last) and not u.is_contiguous())
        return (u * u).sum((2, 3))

    cdn_kernels.score_matching_step(network, y, lambda logits, score: score.square().sum(), scored=scored)
    assert strides and all(strides)
