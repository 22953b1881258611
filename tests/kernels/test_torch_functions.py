"""torch's normalizations and activations in the library's passes, which are right to every order."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu
from cdn_kernels.ops import torch_functions
from cdn_kernels.ops.torch_functions import FirstOrderFunctions
from tests.kernels.oracle import spelled_norm, tensors, third

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


def last(x):
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


# A function of torch, the shapes of its tensors, and how it is called with them.
TAKEN = {
    "silu": ((2, 4, 3, 3), lambda x: F.silu(x)),
    "silu of vectors": ((5, 7), lambda x: F.silu(x, inplace=False)),
    "silu, module": ((2, 4, 3), lambda x: nn.SiLU()(x)),
    "elu": ((2, 4, 3, 3), lambda x: F.elu(x)),
    "elu, module": ((2, 4, 3), lambda x: nn.ELU()(x)),
    "gelu": ((2, 4, 3, 3), lambda x: F.gelu(x)),
    "gelu, module": ((4,), lambda x: nn.GELU()(x)),
    "group norm": ((2, 4, 3, 3), lambda x, w, b: F.group_norm(x, 2, w, b)),
    "group norm, no bias, by name": ((2, 4, 3, 3), lambda x, w, b: F.group_norm(x, num_groups=4, weight=w, eps=0.1)),
    "group norm of sequences": ((2, 4, 5), lambda x, w, b: F.group_norm(x, 2, w, b, 1e-3)),
    "group norm of volumes": ((2, 4, 2, 3, 2), lambda x, w, b: F.group_norm(x, 1, w, b)),
    "group norm, module": (
        (2, 4, 3, 3),
        lambda x, w, b: torch.func.functional_call(nn.GroupNorm(2, 4).double(), dict(weight=w, bias=b), (x,)),
    ),
    "layer norm": ((3, 5), lambda x, w, b: F.layer_norm(x, (5,), w, b)),
    "layer norm without parameters, of sequences": ((2, 3, 4), lambda x: F.layer_norm(x, (4,), eps=0.1)),
    "layer norm without bias, by name": (
        (2, 4, 4),
        lambda x, w, b: F.layer_norm(input=x, normalized_shape=[4], weight=w),
    ),
    "layer norm of images": ((3, 2, 2, 2), lambda x, w, b: F.layer_norm(x, (2, 2), w.expand(2, 2), b.expand(2, 2))),
    "layer norm of channels that are last": (
        (2, 3, 2, 2),
        lambda x, w, b: F.layer_norm(x.permute(0, 2, 3, 1), (3,), w, b),
    ),
    "layer norm, module": (
        (2, 4, 4),
        lambda x, w, b: torch.func.functional_call(nn.LayerNorm(4).double(), dict(weight=w, bias=b), (x,)),
    ),
    "batch norm": ((3, 4, 3, 2), lambda x, w, b: F.batch_norm(last(x), None, None, w, b, True)),
    "batch norm, no parameters, by name": (
        (3, 4, 3, 2),
        lambda x: F.batch_norm(last(x), running_mean=None, running_var=None, training=True, eps=0.1),
    ),
    "batch norm without bias": ((3, 4, 3, 2), lambda x, w, b: F.batch_norm(last(x), None, None, w, training=True)),
    "batch norm of contiguous images": ((3, 4, 3, 2), lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "batch norm of sequences": ((3, 4, 5), lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "batch norm of contiguous volumes": ((3, 4, 2, 3, 2), lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "batch norm of volumes in another order": (
        (3, 4, 2, 3, 2),
        lambda x, w, b: F.batch_norm(x.transpose(2, 4), None, None, w, b, True),
    ),
    "batch norm of rows": ((7, 4), lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "batch norm of volumes": ((2, 4, 2, 3, 2), lambda x, w, b: F.batch_norm(last(x), None, None, w, b, True)),
    "batch norm, module": (
        (3, 4, 3, 2),
        lambda x, w, b: torch.func.functional_call(nn.BatchNorm2d(4).double(), dict(weight=w, bias=b), (last(x),)),
    ),
    "softmax": ((2, 3, 4), lambda x: F.softmax(x, -1)),
    "softmax, by name": ((3, 5), lambda x: torch.softmax(x, dim=1)),
    "softmax of transposed rows": ((3, 5), lambda x: x.mT.softmax(1, dtype=torch.float64)),
    "softmax, module": ((2, 3, 4), lambda x: nn.Softmax(dim=2)(x)),
    "attention": ((2, 3, 4), lambda x: F.scaled_dot_product_attention(x, x.flip(1).tanh(), x.sin())),
    "attention of heads, scaled, by name": (
        (2, 3, 4, 5),
        lambda x: F.scaled_dot_product_attention(query=x[:, :, :2], key=x.tanh(), value=x[..., :2].sin(), scale=0.3),
    ),
}
LEFT = {
    "softmax over another dimension": ((2, 3, 4), lambda x: F.softmax(x, 1)),
    "softmax of another type": ((2, 3), lambda x: F.softmax(x, -1, dtype=torch.float32)),
    "attention with a mask": (
        (2, 3, 4),
        lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(3, 3, dtype=torch.bool).tril()),
    ),
    "causal attention": ((2, 3, 4), lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "attention with shared keys": ((2, 3, 4), lambda x: F.scaled_dot_product_attention(x, x[:1], x[:1])),
    "batch norm with the statistics of others": (
        (3, 4, 3, 2),
        lambda x, w, b: F.batch_norm(last(x), w.detach(), b.detach().exp(), w, b),
    ),
    "silu in place": ((2, 4, 3, 3), lambda x: F.silu(x + 0, inplace=True)),
    "elu in place": ((2, 4, 3, 3), lambda x: F.elu(x + 0, inplace=True)),
    "elu with another end": ((2, 4, 3, 3), lambda x: F.elu(x, 0.5)),
    "approximate gelu": ((2, 4, 3, 3), lambda x: F.gelu(x, approximate="tanh")),
    "group norm without gain": ((2, 4, 3, 3), lambda x, w, b: F.group_norm(x, 2)),
    "group norm of rows": ((2, 4), lambda x, w, b: F.group_norm(x, 2, w, b)),
}


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(torch_functions, "CHOICE", "all")


def inputs_of(shape, call):
    parameters = [(shape[1],)] * 2 if call.__code__.co_argcount == 3 else []
    return tensors([shape, *parameters])


def operations(x):
    """Return the names of what a tensor was computed by."""
    found, nodes = [], [x.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            found.append(type(node).__name__)
            nodes += [following for following, _ in node.next_functions]
    return found


def intercepted(call):
    def function(*inputs):
        with FirstOrderFunctions():
            return call(*inputs)

    return function


def spelled_layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return spelled_norm(input, tuple(range(-len(normalized_shape), 0)), weight, bias, eps)


def spelled_batch_norm(input, running_mean, running_var, weight=None, bias=None, training=True, momentum=0.1, eps=1e-5):
    parameters = (None if p is None else p.view(-1, *[1] * (input.dim() - 2)) for p in (weight, bias))
    return spelled_norm(input, (0, *range(2, input.dim())), *parameters, eps)


@pytest.mark.parametrize("shape, call", TAKEN.values(), ids=TAKEN)
def test_they_are_taken_over_and_right_to_the_third_order(shape, call, monkeypatch):
    inputs = inputs_of(shape, call)
    functions = FirstOrderFunctions()
    with functions:
        mine = call(*inputs)
    theirs = call(*inputs)
    assert functions.gained and operations(mine) != operations(theirs)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)
    used = [x for x, g in zip(inputs, torch.autograd.grad(theirs.sum(), inputs, allow_unused=True)) if g is not None]
    of_used = lambda f: lambda *some: f(*some, *inputs[len(some) :])
    own = third(of_used(intercepted(call)), used)
    # Second derivatives of torch's layer and batch norm take the statistics for constants: its third ones are wrong.
    monkeypatch.setattr(F, "layer_norm", spelled_layer_norm)
    monkeypatch.setattr(F, "batch_norm", spelled_batch_norm)
    for by_passes, exact in zip(own, third(of_used(call), used), strict=True):
        torch.testing.assert_close(by_passes, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape, call", LEFT.values(), ids=LEFT)
def test_what_the_passes_cannot_do_is_left_to_torch(shape, call):
    inputs = inputs_of(shape, call)
    functions = FirstOrderFunctions()
    with functions:
        mine = call(*inputs)
    assert not functions.gained and type(mine.grad_fn) is type(call(*inputs).grad_fn)


def test_wrong_arguments_get_the_words_of_torch():
    x, w = torch.randn(2, 4, 3, 3, requires_grad=True), torch.ones(3)
    calls = [lambda: F.group_norm(x, 3, torch.ones(4)), lambda: F.group_norm(x, 2, w)]
    calls += [
        lambda: F.layer_norm(x, (4,)),
        lambda: F.layer_norm(x, (3,), torch.ones(3, 1)),
        lambda: F.layer_norm(x, ()),
        lambda: F.batch_norm(x, None, None, w, None, True),
        lambda: F.softmax(x, 4),
        lambda: F.scaled_dot_product_attention(x, x[..., :2], x),
        lambda: F.batch_norm(x, torch.zeros(3), torch.ones(4), None, None, True),
    ]
    for call in calls:
        with pytest.raises((RuntimeError, IndexError)) as wanted:
            call()
        with FirstOrderFunctions(), pytest.raises((RuntimeError, IndexError)) as found:
            call()
        assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_with_parameters_of_either_type(dtype):
    x = torch.randn(2, 4, 4, 5).to(dtype).requires_grad_()
    for parameters in (torch.float32, dtype):
        w, b = torch.rand(2, 4, dtype=parameters)
        for norm in (lambda x, w, b: F.group_norm(x, 2, w, b), lambda x, w, b: F.layer_norm(x.mT, (4,), w, b)):
            with FirstOrderFunctions() as functions:
                mine = norm(x, w, b)
            assert mine.dtype == dtype and functions.gained
            exact = norm(x.double(), w.double(), b.double())
            assert (mine - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("shape", [(3, 4, 3, 2), (9, 4), (2, 4, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_become_those_of_torch(shape, momentum):
    norms = [{2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](4, momentum=momentum).double()]
    norms.append(copy.deepcopy(norms[0]))
    for number in range(3):
        x = torch.randn(shape, dtype=torch.float64)
        x = x if x.dim() == 2 or number == 1 else last(x)
        with FirstOrderFunctions() as functions:
            mine = norms[0](x)
        assert functions.gained
        torch.testing.assert_close(mine, norms[1](x), rtol=0, atol=1e-13)
    for own, buffer in zip(norms[0].buffers(), norms[1].buffers(), strict=True):
        torch.testing.assert_close(own, buffer, rtol=1e-13, atol=1e-14)


def test_one_value_per_channel_gets_the_words_of_torch():
    with FirstOrderFunctions(), pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        nn.BatchNorm1d(3)(torch.randn(1, 3, requires_grad=True))


def test_small_ones_and_those_without_gradients_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(torch_functions, "CHOICE", "measured")
    small, large = torch.randn(1, 4, 3, 3), torch.randn(1, 8, 128, 128)
    assert small.numel() < torch_functions.FEWEST_ELEMENTS["silu"] <= large.numel()
    for x, taken in ((small.requires_grad_(), False), (large, False), (large.clone().requires_grad_(), True)):
        functions = FirstOrderFunctions()
        with functions:
            F.silu(x)
        assert functions.gained == taken
    with FirstOrderFunctions(), cdn_kernels.using("reference"):
        assert "cdn_kernels" not in type(F.silu(large.clone().requires_grad_()).grad_fn).__name__


def test_many_calls_are_watched_for_large_layers_only(monkeypatch):
    monkeypatch.setattr(torch_functions, "CHOICE", "measured")
    size, small = torch_functions.FEWEST_ELEMENTS["silu"], torch.randn(3)
    for times, pays in ((1, False), (3, True)):
        with FirstOrderFunctions() as functions:
            F.silu(torch.randn(times * size, requires_grad=True))
            for _ in range(2 * torch_functions.CALLS_A_LAYER):
                torch.tanh(small)
        assert functions.gained and functions.pays == pays
    with FirstOrderFunctions() as functions:
        torch.tanh(small)
    assert not functions.gained and not functions.pays


class PreActivation(nn.Sequential):
    def __init__(self):
        convolution = lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        super().__init__(
            convolution(3, 8),
            *(nn.GroupNorm(2, 8), nn.SiLU(), convolution(8, 8)),
            *(nn.GroupNorm(4, 8), nn.GELU(), convolution(8, 4)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("with_checkpoints", [False, True])
def test_a_step_of_a_network_of_torchs_layers(layout, with_checkpoints):
    torch.manual_seed(0)
    network = PreActivation().double().to(memory_format=layout)
    network[4].weight.requires_grad_(False)
    y = torch.randn(3, 3, 6, 6, dtype=torch.float64).contiguous(memory_format=layout)
    loss = lambda outputs, score: outputs.square().mean() + (score + 1).square().mean()
    called = (lambda y: checkpoint(network, y, use_reentrant=False)) if with_checkpoints else network
    cdn_kernels.score_matching_step(called, y, loss)
    mine = [p.grad for p in network.parameters()]
    network.zero_grad()
    x = y.clone().requires_grad_()
    outputs = network(x)
    (score,) = torch.autograd.grad(reference.logsumexp(outputs).sum(), x, create_graph=True)
    loss(outputs, score).backward()
    for own, p in zip(mine, network.parameters(), strict=True):
        assert (own is None) == (p.grad is None)
        if own is not None:
            torch.testing.assert_close(own, p.grad, rtol=1e-11, atol=1e-13)
