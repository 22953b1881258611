"""Blocks of someone else's through their own vjp and jvp: exactness, random and stateful blocks, refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels.ops.torch_functions import FirstOrderFunctions

DOUBLE = torch.float64


def block():
    return nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1), nn.GELU(), nn.Flatten(), nn.LayerNorm(2 * 6), nn.Linear(2 * 6, 3), nn.Softmax(1)
    ).double()


def leaf(*shape, dtype=DOUBLE):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def second_order(function, x, parameters):
    """Return the value and the gradients by everything of a function of both its value and its input gradient."""
    out = function(x)
    (g,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    return out, *torch.autograd.grad(g.square().sum() + out.sin().sum(), [x, *parameters], allow_unused=True)


def assert_equal(mine, exact):
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_modules_pass_numerical_checks():
    module = block()
    run = lambda x, *_: cdn_kernels.foreign(module, x)
    inputs = (leaf(2, 2, 3, 2), *module.parameters())
    assert gradcheck(run, inputs) and gradgradcheck(run, inputs)


def test_functions_pass_numerical_checks():
    run = lambda a, b: cdn_kernels.foreign(lambda a, n, b: (a @ b).tanh() * n, a, 3, b)
    inputs = leaf(2, 3), leaf(3, 4)
    assert gradcheck(run, inputs) and gradgradcheck(run, inputs)


@pytest.mark.parametrize(
    "name, x, weight, options",
    [
        ("conv1d", (2, 3, 6), (2, 3, 3), dict(padding="same", dilation=2)),
        ("conv2d", (2, 4, 4, 3), (4, 2, 3, 2), dict(groups=2, stride=(2, 1), padding=1)),
        ("conv2d", (3, 5, 4), (2, 3, 3, 3), {}),
        ("conv3d", (1, 2, 3, 3, 3), (2, 2, 2, 2, 2), {}),
        ("conv_transpose1d", (2, 3, 4), (3, 2, 3), dict(stride=2)),
        ("conv_transpose2d", (2, 4, 3, 2), (4, 2, 3, 3), dict(stride=2, padding=1, output_padding=1, groups=2)),
        ("conv_transpose3d", (1, 2, 2, 2, 2), (2, 2, 2, 2, 2), {}),
    ],
)
def test_torch_convolutions_pass_numerical_checks(name, x, weight, options):
    def run(x, weight, bias):
        with FirstOrderFunctions():
            return getattr(F, name)(x, weight, bias, **options)

    outputs = weight[1] * options.get("groups", 1) if "transpose" in name else weight[0]
    inputs = leaf(*x), leaf(*weight), leaf(outputs)
    assert gradcheck(run, inputs) and gradgradcheck(run, inputs)
    without_bias = lambda x, weight: run(x, weight, None)
    assert gradgradcheck(without_bias, inputs[:2])


def test_second_derivatives_equal_those_of_torch():
    module, x = block(), leaf(2, 2, 3, 2)
    parameters = list(module.parameters())
    assert_equal(
        second_order(lambda x: cdn_kernels.foreign(module, x), x, parameters), second_order(module, x, parameters)
    )


class Direct(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x[:, None])[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LayerNorm(6),
        lambda: nn.BatchNorm1d(6),
        lambda: nn.BatchNorm1d(6).eval(),
        lambda: nn.Softmax(1),
        lambda: nn.Bilinear(6, 6, 2),
        lambda: nn.TransformerEncoderLayer(6, 2, 8, activation="gelu"),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 2)),
        lambda: nn.Dropout(0.5),
        lambda: nn.SiLU(),
        lambda: nn.Sequential(nn.Linear(6, 4), nn.SiLU(inplace=True), nn.Linear(4, 2), nn.Mish(inplace=True)),
        lambda: nn.Mish(),
        lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.GroupNorm(3, 3)),
        lambda: nn.GroupNorm(2, 6, affine=False),
        lambda: Direct(lambda x: torch.group_norm(x, 2, None, None, 1e-2)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 2), dim=None),
        lambda: Recurrent(nn.LSTM(6, 3, 2)),
        lambda: Recurrent(nn.GRU(6, 3)),
    ],
    ids=[
        "layer norm",
        "batch norm",
        "batch norm, eval",
        "softmax",
        "bilinear",
        "transformer",
        "spectral norm",
        "dropout",
        "silu",
        "in place",
        "mish",
        "group norm",
        "group norm without weights",
        "torch.group_norm",
        "weight norm",
        "LSTM",
        "GRU",
    ],
)
def test_kinds_of_blocks(make):
    """Forward mode over each kind of operation: torch has been silently wrong in some of these."""
    module, x = make().double(), leaf(4, 6)
    other = copy.deepcopy(module)
    arguments = lambda x: (x, x.sin()) if isinstance(module, nn.Bilinear) else (x.sin(),)
    torch.manual_seed(1)
    mine = second_order(lambda x: cdn_kernels.foreign(module, *arguments(x)), x, list(module.parameters()))
    torch.manual_seed(1)
    assert_equal(mine, second_order(lambda x: other(*arguments(x)), x, list(other.parameters())))


def test_inputs_may_be_left_unused():
    a, b = leaf(3), leaf(3)
    out = cdn_kernels.foreign(lambda a, b: a.sin(), a.detach(), b)
    assert not out.requires_grad
    (g,) = torch.autograd.grad(cdn_kernels.foreign(lambda a, b: a.sin(), a, b).sum(), a, create_graph=True)
    assert torch.autograd.grad(g.sum(), b, allow_unused=True) == (None,)


def test_random_numbers_are_drawn_again():
    module, x = nn.Sequential(nn.Linear(5, 40), nn.Dropout(0.5), nn.Tanh(), nn.Linear(40, 2)).double(), leaf(3, 5)
    parameters = list(module.parameters())
    torch.manual_seed(3)
    mine = second_order(lambda x: cdn_kernels.foreign(module, x), x, parameters)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    assert_equal(mine, second_order(module, x, parameters))
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm1d(5),
        lambda: nn.BatchNorm1d(5, momentum=None),
        lambda: nn.utils.spectral_norm(nn.Linear(5, 5)),
    ],
    ids=["batch norm", "averaging", "spectral norm"],
)
def test_buffers_change_once(make):
    torch.manual_seed(0)
    mine = nn.Sequential(make(), nn.Tanh()).double()
    theirs = nn.Sequential(make(), nn.Tanh()).double()
    theirs.load_state_dict(mine.state_dict())
    x = leaf(4, 5)
    for _ in range(2):
        assert_equal(
            second_order(lambda x: cdn_kernels.foreign(mine, x), x, list(mine.parameters())),
            second_order(theirs, x, list(theirs.parameters())),
        )
    assert_equal([b.double() for b in mine.buffers()], [b.double() for b in theirs.buffers()])


def test_autocast_holds_for_the_second_run():
    module, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)), leaf(4, 8, dtype=torch.float32)
    seen = []
    module[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = cdn_kernels.foreign(module, x)
    (g,) = torch.autograd.grad(out.float().sum(), x, create_graph=True)
    g.square().sum().backward()
    assert out.dtype == torch.bfloat16 and seen == [torch.bfloat16] * 2
    assert all(p.grad.dtype == torch.float32 for p in module[0].parameters())


class NoDoubleBackward(torch.autograd.Function):
    """A fused operation as one finds them: forward, backward and forward mode, no double backward."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, t):
        return t * ctx.saved_tensors[0].cos()


def test_forward_mode_stands_in_for_a_missing_double_backward():
    x = leaf(4)
    (g,) = torch.autograd.grad(NoDoubleBackward.apply(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(g.sum(), x)
    assert_equal(
        second_order(lambda x: cdn_kernels.foreign(NoDoubleBackward.apply, x), x, []), second_order(torch.sin, x, [])
    )


def test_where_no_gradient_is_needed_the_block_just_runs():
    module, x = block().requires_grad_(False), torch.randn(2, 2, 3, 2, dtype=DOUBLE)
    assert cdn_kernels.foreign(module, x).grad_fn is None
    with torch.no_grad():
        assert cdn_kernels.foreign(module, x.requires_grad_()).grad_fn is None
    _, mine = torch.func.jvp(lambda x: cdn_kernels.foreign(module, x), (x.detach(),), (torch.ones_like(x),))
    _, exact = torch.func.jvp(module, (x.detach(),), (torch.ones_like(x),))
    torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("function", [lambda x: x, lambda x: x.view(-1), lambda x: x.detach() * 2])
def test_outputs_have_memory_of_their_own(function):
    x = leaf(2, 2)
    out = cdn_kernels.foreign(function, x)
    before = x.detach().clone()
    out.mul_(3)
    assert torch.equal(x, before)
    if out.requires_grad:
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.full_like(x, 3))


def test_what_follows_may_work_in_place():
    module, x = nn.Conv2d(2, 4, 3).double(), leaf(2, 2, 5, 5)
    smooth = lambda out: F.silu(out, inplace=True)
    assert_equal(
        second_order(lambda x: smooth(cdn_kernels.foreign(module, x)), x, list(module.parameters())),
        second_order(lambda x: F.silu(module(x)), x, list(module.parameters())),
    )


def test_graphs_can_be_kept_and_are_freed():
    module, x = block(), leaf(2, 2, 3, 2)
    out = cdn_kernels.foreign(module, x).sum()
    first = torch.autograd.grad(out, x, retain_graph=True)
    assert_equal(first, torch.autograd.grad(out, x))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, x)


def test_saved_tensor_hooks_apply():
    module, x = block(), leaf(2, 2, 3, 2)
    with torch.autograd.graph.save_on_cpu():
        mine = second_order(lambda x: cdn_kernels.foreign(module, x), x, list(module.parameters()))
    assert_equal(mine, second_order(module, x, list(module.parameters())))


def test_third_order_is_refused():
    x = leaf(3)
    value = cdn_kernels.foreign(torch.sin, x).square().sum()
    for _ in range(2):
        value = torch.autograd.grad(value, x, create_graph=True)[0].square().sum()
    with pytest.raises(RuntimeError, match="third derivatives have no kernel"):
        torch.autograd.grad(value, x)


W = torch.ones(3, dtype=DOUBLE, requires_grad=True)


@pytest.mark.parametrize(
    "block, error, message",
    [
        (3, TypeError, "block must be a module or a function, got int"),
        (lambda x: (x, x), TypeError, "must return one tensor, got tuple"),
        (lambda x: x * W, ValueError, r"uses a tensor of shape \[3\] that requires grad and is not among its inputs"),
        (lambda x: x * W.exp(), ValueError, "pass it, or make it a parameter of a module"),
        (nn.ReLU(inplace=True), RuntimeError, "ReLU must not change its input in place"),
        (
            lambda x: torch.cdist(x.view(3, 1), x.view(3, 1)),
            RuntimeError,
            "<lambda> uses _cdist_forward without derivative in forward mode; call it directly",
        ),
    ],
)
def test_what_cannot_run_gets_one_sentence(block, error, message):
    with pytest.raises(error, match=message) as caught:
        second_order(lambda x: cdn_kernels.foreign(block, x), leaf(3), [])
    assert "\n" not in str(caught.value)
