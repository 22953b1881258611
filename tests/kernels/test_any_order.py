"""torch's normalizations with derivatives of any order, where its own are wrong from the third on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cdn_kernels
from cdn_kernels.ops.any_order import AnyOrderNorms
from tests.kernels.oracle import spelled_norm, tensors, third


def per_channel(p, x):
    return p.view(-1, *[1] * (x.dim() - 2))


# The shapes of images and parameters, a call of torch, and the same from its definition.
CASES = {
    "layer": (
        [(3, 5), (5,), (5,)],
        lambda x, w, b: F.layer_norm(x, (5,), w, b),
        lambda x, w, b: spelled_norm(x, -1, w, b, 1e-5),
    ),
    "layer, two dimensions, no bias": (
        [(3, 2, 3), (2, 3)],
        lambda x, w: F.layer_norm(x, normalized_shape=[2, 3], weight=w, eps=0.1),
        lambda x, w: spelled_norm(x, (1, 2), w, None, 0.1),
    ),
    "layer without parameters": (
        [(2, 3, 4)],
        lambda x: F.layer_norm(x, (4,)),
        lambda x: spelled_norm(x, -1, None, None, 1e-5),
    ),
    "batch": (
        [(4, 3, 2, 2), (3,), (3,)],
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        lambda x, w, b: spelled_norm(x, (0, 2, 3), per_channel(w, x), per_channel(b, x), 1e-5),
    ),
    "batch of vectors, without parameters": (
        [(5, 3)],
        lambda x: F.batch_norm(x, None, None, training=True, eps=0.1),
        lambda x: spelled_norm(x, 0, None, None, 0.1),
    ),
    "instance": (
        [(2, 3, 4), (3,), (3,)],
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        lambda x, w, b: spelled_norm(x, 2, per_channel(w, x), per_channel(b, x), 1e-5),
    ),
}


@pytest.mark.parametrize("shapes, call, definition", CASES.values(), ids=CASES)
def test_derivatives_are_right_to_the_third_order(shapes, call, definition):
    inputs = tensors(shapes)

    def exact(*inputs):
        with AnyOrderNorms():
            return call(*inputs)

    wanted = third(definition, inputs)
    for found, own in zip(third(exact, inputs), wanted, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-9, atol=1e-9)
    # Once this fails, torch is right, and AnyOrderNorms has no purpose.
    try:
        by_torch = third(call, inputs)
    except RuntimeError as error:
        assert "does not support 3rd+ order derivatives" in str(error)
    else:
        assert any(float((a - b).norm()) > 1e-3 * float(b.norm()) for a, b in zip(by_torch, wanted, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [nn.BatchNorm2d, lambda c: nn.InstanceNorm2d(c, track_running_stats=True)])
def test_running_statistics_change_as_torch_changes_them(make, training):
    ours, theirs = make(3).train(training), make(3).train(training)
    x = torch.randn(4, 3, 5, 5) + 1
    with AnyOrderNorms():
        mine = ours(x)
    torch.testing.assert_close(mine, theirs(x))
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(a, b)


def test_wrong_arguments_get_the_words_of_torch():
    x = torch.randn(1, 4)
    for call in (lambda: F.layer_norm(x, (3,)), lambda: F.batch_norm(x, None, None, training=True)):
        with pytest.raises((RuntimeError, ValueError)) as wanted:
            call()
        with AnyOrderNorms(), pytest.raises(type(wanted.value)) as found:
            call()
        assert str(found.value) == str(wanted.value)


class Potential(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(2, 6), norm, nn.Linear(6, 1)

    def forward(self, y):
        return self.last(self.norm(self.first(y)).tanh()).flatten()


class Spelled(nn.Module):
    def __init__(self, dims, like):
        super().__init__()
        self.dims, self.weight, self.bias, self.eps = dims, like.weight, like.bias, like.eps

    def forward(self, x):
        return spelled_norm(x, self.dims, self.weight, self.bias, self.eps)


@pytest.mark.parametrize("make, dims", [(nn.LayerNorm, -1), (nn.BatchNorm1d, 0)], ids=["layer", "batch"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("as_function", [False, True])
def test_a_step_with_a_laplacian_in_its_loss(make, dims, impl, as_function):
    torch.manual_seed(0)
    network = Potential(make(6)).double()
    y = torch.randn(5, 2, dtype=torch.float64)

    def loss(values, gradient, y):
        second = [torch.autograd.grad(gradient[:, i].sum(), y, create_graph=True)[0][:, i] for i in range(2)]
        return (sum(second) + 1).square().mean() + values.square().mean()

    called = (lambda y: network(y)) if as_function else network
    cdn_kernels.score_matching_step(called, y, loss, impl=impl)
    mine = [p.grad for p in network.parameters()]
    network.zero_grad()
    exact = Potential(Spelled(dims, network.norm))
    exact.first, exact.last = network.first, network.last
    x = y.clone().requires_grad_()
    values = exact(x)
    (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    loss(values, gradient, x).backward()
    for own, p in zip(mine, network.parameters(), strict=True):
        torch.testing.assert_close(own, p.grad, rtol=1e-10, atol=1e-12)
