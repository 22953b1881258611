"""How the operations live in torch: registration, what backward passes compute, compiling, transforms, errors."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu
from cdn_kernels.backends.interface import NO_GROUPS
from tests.kernels.networks import (
    assert_compiles_without_graph_breaks,
    assert_gradient_penalties_equal_the_reference,
    network,
    network_inputs,
    penalty,
)
from tests.kernels.oracle import assert_as_exact_as_eager, third

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

OPS = torch.ops.cdn_kernels


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3])
def test_convolution_passes_numerical_checks(stride, size):
    x = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    for function in (cdn_kernels.conv2d, cdn_kernels.conv2d_gelu):
        f = lambda x, weight: function(x, weight, stride, impl="cpu")
        assert gradcheck(f, (x, weight)) and gradgradcheck(f, (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_as_exact_as_eager(dtype, layout, stride):
    x = torch.randn(2, 5, 9, 6).to(dtype).contiguous(memory_format=layout)
    weight = (torch.randn(8, 5, 3, 3) / 7).to(dtype).contiguous(memory_format=layout)
    assert_as_exact_as_eager(
        lambda *a: cdn_kernels.conv2d_gelu(*a, stride, impl="cpu"),
        lambda *a: reference.conv2d_gelu(*a, stride),
        (x, weight),
    )


def test_gradient_penalties_equal_the_reference():
    assert_gradient_penalties_equal_the_reference("cpu")


def calls(profile, name):
    """Count the calls of an operation, and of the one of its kind after a GELU."""
    names = {f"cdn_kernels::{name}", f"cdn_kernels::{name.replace('_', '_of_gelu_')}"}
    return sum(e.count for e in profile.key_averages() if e.key in names)


def test_the_score_computes_no_weight_gradients():
    y, *parameters = network_inputs()
    value = network("cpu")(y, *parameters).sum()
    with torch.profiler.profile() as profile:
        (score,) = torch.autograd.grad(value, y, create_graph=True)
    assert calls(profile, "conv2d_weight") == 0 and calls(profile, "conv2d_input") == 3
    with torch.profiler.profile() as profile:
        score.square().mean().backward()
    # One of the score and one of the forward for each of three filters.
    assert calls(profile, "conv2d_weight") == 6
    assert all(p.grad is not None for p in parameters)


def test_no_convolution_has_an_image_sized_kernel():
    inputs = network_inputs(torch.float32, size=12)
    with torch.profiler.profile(record_shapes=True) as profile:
        penalty(network("cpu"), *inputs).backward()
    events = [e for e in profile.events() if e.name in ("aten::convolution", "aten::convolution_backward")]
    kernels = [e.input_shapes[2 if e.name.endswith("backward") else 1][-1] for e in events]
    assert len(kernels) >= 12 and max(kernels) == 3


def test_frozen_parameters_cost_and_get_nothing():
    y, stem, *rest = network_inputs()
    stem.requires_grad_(False)
    with torch.profiler.profile() as profile:
        penalty(network("cpu"), y, stem, *rest).backward()
    assert stem.grad is None and calls(profile, "conv2d_weight") == 4


@pytest.mark.parametrize("name", ["gelu", "silu", "elu", "softmax", "conv2d_gelu"])
def test_third_order_of_activations(name):
    shapes = [(2, 3, 4, 3)] + [(2, 3, 3, 3)] * (name == "conv2d_gelu")
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    ours, theirs = (lambda *t, impl=impl: getattr(cdn_kernels, name)(*t, impl=impl) for impl in ("cpu", "reference"))
    for mine, exact in zip(third(ours, inputs), third(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-10)


def test_third_order_of_the_norm_is_refused():
    x = torch.randn(1, 3, 2, 1, requires_grad=True)
    value = cdn_kernels.gelu_group_norm(x, torch.ones(3), 1, impl="cpu").square().sum()
    for _ in range(2):
        value = torch.autograd.grad(value, x, create_graph=True)[0].square().sum()
    with pytest.raises(RuntimeError, match="third derivatives have no kernel; use impl='reference'"):
        torch.autograd.grad(value, x)


def test_transforms_are_right_or_refused():
    y, *parameters = (i.detach() for i in network_inputs())
    total = lambda impl: lambda y: network(impl)(y, *parameters).sum()
    torch.testing.assert_close(torch.func.grad(total("auto"))(y), torch.func.grad(total("reference"))(y))
    _, mine = torch.func.jvp(total("auto"), (y,), (torch.ones_like(y),))
    _, exact = torch.func.jvp(total("reference"), (y,), (torch.ones_like(y),))
    torch.testing.assert_close(mine, exact)
    each = torch.func.vmap(lambda y: network("auto")(y[None], *parameters)[0])(y)
    torch.testing.assert_close(each, network("reference")(y, *parameters))
    with pytest.raises(RuntimeError, match="cannot run under torch.func transforms"):
        torch.func.grad(total("cpu"))(y)


def test_first_order_compiles_without_graph_breaks():
    assert_compiles_without_graph_breaks(lambda *inputs: network("cpu")(*inputs).sum(), network_inputs(torch.float32))


def test_autocast_rounds_the_operands_of_convolutions():
    x, weight = torch.randn(1, 3, 4, 4), torch.randn(2, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = cdn_kernels.conv2d(x, weight, impl="cpu")
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    assert torch.equal(out, cdn_kernels.conv2d(x.bfloat16(), weight.bfloat16(), impl="cpu"))


def op_samples():
    torch.manual_seed(0)
    x, r, g, t = (torch.randn(2, 4, 3, 5, requires_grad=True) for _ in range(4))
    gain, weight = torch.rand(4, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)
    g6, w2 = torch.randn(2, 6, 3, 5, requires_grad=True), torch.randn(5, 6, 1, 1, requires_grad=True)
    h = reference.gelu(x).detach()
    statistics = OPS.gelu_group_norm(x.detach(), None, gain.detach(), 2, 0.1, True, "cpu")[2]
    plain = OPS.group_norm(x.detach(), gain.detach(), None, 2, 0.1, "cpu")[1]
    x_last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    batch = OPS.group_norm(x_last.detach(), gain.detach(), None, NO_GROUPS, 0.1, "cpu")[1]
    return [
        (OPS.gelu, (x,)),
        (OPS.gelu_backward, (x, g, t)),
        (OPS.gelu_backward, (x, g, None)),
        (OPS.silu, (x,)),
        (OPS.silu_backward, (x, g, t)),
        (OPS.silu_backward, (x, g, None)),
        (OPS.elu, (x,)),
        (OPS.elu_backward, (x, g, t)),
        (OPS.elu_backward, (x, g, None)),
        (OPS.softmax, (x,)),
        (OPS.softmax_backward, (x.detach().softmax(-1).requires_grad_(), g)),
        (OPS.group_norm, (x, gain, gain.detach(), 2, 0.1)),
        (OPS.group_norm, (x, gain, None, 2, 0.1)),
        (OPS.group_norm_backward, (x, plain, gain, g, 2, 0.1, True)),
        (OPS.group_norm_backward, (x, plain, gain, g, 2, 0.1, False)),
        (OPS.group_norm, (x_last, gain, gain.detach(), NO_GROUPS, 0.1)),
        (OPS.group_norm_backward, (x_last, batch, gain, g, NO_GROUPS, 0.1, True)),
        (OPS.conv2d_gelu, (x, weight, 2, True)),
        (OPS.conv2d_gelu, (x.detach(), weight.detach(), 1, False)),
        (OPS.conv2d, (x, weight, 2)),
        (OPS.conv2d_input, (torch.randn(2, 6, 2, 3, requires_grad=True), weight, [2, 4, 3, 5], 2)),
        (OPS.conv2d_weight, (x, torch.randn(2, 6, 2, 3, requires_grad=True), 3, 2)),
        (OPS.conv2d_gelu_conv2d, (x, weight, w2, 2, True)),
        (OPS.conv2d_gelu_conv2d, (x.detach(), weight.detach(), w2.detach(), 1, False)),
        (OPS.conv2d_of_gelu, (x, h, weight)),
        (OPS.conv2d_of_gelu_input, (g6, weight, x, t, True)),
        (OPS.conv2d_of_gelu_input, (g6.detach(), weight.detach(), x.detach(), None, False)),
        (OPS.conv2d_of_gelu_weight, (x, h, g6, 3)),
        (OPS.gelu_group_norm, (x, r, gain, 2, 0.1, True)),
        (OPS.gelu_group_norm, (x, None, gain, 2, 0.1, False)),
        (OPS.gelu_group_norm_backward, (x, statistics, gain, g, t, 2, 0.1, True, True)),
        (OPS.gelu_group_norm_backward, (x, statistics, gain, g, None, 2, 0.1, True, False)),
    ]


@pytest.mark.parametrize("index", range(32))
def test_registration_passes_opcheck(index):
    op, arguments = op_samples()[index]
    torch.library.opcheck(op, (*arguments, "cpu"))


def test_second_order_ops_pass_opcheck():
    x, g, t = (torch.randn(2, 4, 3, 5) for _ in range(3))
    gain = torch.rand(4)
    statistics = OPS.gelu_group_norm(x, None, gain, 2, 0.1, True, "cpu")[2]
    torch.library.opcheck(OPS.gelu_tangent, (x, g, t, "cpu"))
    torch.library.opcheck(OPS.gelu_group_norm_tangent, (x, statistics, gain, g, t, 2, 0.1, True, True, "cpu"))
    torch.library.opcheck(OPS.silu_tangent, (x, g, t, "cpu"))
    torch.library.opcheck(OPS.elu_tangent, (x, g, t, "cpu"))
    torch.library.opcheck(OPS.softmax_tangent, (x.softmax(-1), g, t, "cpu"))
    plain = OPS.group_norm(x, gain, None, 2, 0.1, "cpu")[1]
    torch.library.opcheck(OPS.group_norm_tangent, (x, plain, gain, g, t, 2, 0.1, True, "cpu"))
    x = x.contiguous(memory_format=torch.channels_last)
    batch = OPS.group_norm(x, gain, None, NO_GROUPS, 0.1, "cpu")[1]
    torch.library.opcheck(OPS.group_norm_tangent, (x, batch, gain, g, t, NO_GROUPS, 0.1, True, "cpu"))


X, W = torch.ones(2, 4, 3, 3), torch.ones(6, 4, 3, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cdn_kernels.gelu([1.0]), "u must be a tensor, got list"),
        (lambda: cdn_kernels.gelu(torch.ones(2, dtype=torch.long)), "u must be float32, .* got torch.int64"),
        (lambda: cdn_kernels.conv2d_gelu(X[0], W), r"x must have 4 dimensions, got shape \[4, 3, 3\]"),
        (
            lambda: cdn_kernels.conv2d_gelu(X, W[:, :3]),
            r"x must have the 3 channels that weight takes, got \[2, 4, 3, 3\]",
        ),
        (lambda: cdn_kernels.conv2d_gelu(X, W[..., :2, :2]), "weight must be .* with odd k"),
        (lambda: cdn_kernels.conv2d_gelu(X, W, 0), "stride must be an integer of 1 or more, got 0"),
        (
            lambda: cdn_kernels.conv2d(X, W.double()),
            "weight must have the dtype of x, torch.float32, got torch.float64",
        ),
        (lambda: cdn_kernels.conv2d_gelu_conv2d(X, W[:, :3], W), "x must have the 3 channels that first takes"),
        (
            lambda: cdn_kernels.conv2d_gelu_conv2d(X, W, W),
            r"second must take the 6 channels that first gives, got \[6, 4, 3, 3\]",
        ),
        (lambda: cdn_kernels.conv2d_gelu_conv2d(X, W, W[..., 0]), "second must have 4 dimensions"),
        (lambda: cdn_kernels.conv2d_gelu_conv2d(X, W, W.transpose(0, 1).double()), "second must have the dtype of x"),
        (
            lambda: cdn_kernels.gelu_group_norm(X, torch.ones(3), 2),
            r"weight must have one gain per channel, \[4\], got \[3\]",
        ),
        (lambda: cdn_kernels.gelu_group_norm(X, torch.ones(4), 3), "groups must divide the 4 channels of x, got 3"),
        (lambda: cdn_kernels.gelu_group_norm(X, torch.ones(4), 2, eps=0.0), "eps must be positive, got 0.0"),
        (lambda: cdn_kernels.gelu_group_norm(X, torch.ones(4), 2, residual=X[:1]), "residual must have shape"),
        (lambda: cdn_kernels.gelu_group_norm(X[..., :0], torch.ones(4), 2), "x must have channels and pixels"),
        (lambda: cdn_kernels.gelu(X, impl="fast"), "impl must be one of"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_empty_batches_pass_through():
    y, *parameters = network_inputs(torch.float32)
    out = network("cpu")(y[:0], *parameters)
    assert out.shape == (0,)
    out.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in parameters)
