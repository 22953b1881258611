"""Parts of a network that are computed again: the same values and derivatives of both orders, in less memory."""

import pytest
import torch
from torch import nn

import cdn
import cdn_kernels
from benchmarks.harness.memory import peak_bytes
from cdn_kernels import recomputed
from cdn_kernels.ops import torch_functions

F64 = torch.float64


class Two(nn.Module):
    """A part with two inputs, one of them in two roles, and two outputs."""

    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(2, 2, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(2, 1, 1))

    def forward(self, x, times, z):
        h = torch.tanh(self.map(x)) * self.scale + z
        return h * times, (h * x).sum((1, 2, 3))


def layers(channels=4):
    """Return modules that keep something for their derivatives, library's and torch's own."""
    block = cdn.GradResNet(width=8, blocks=(1,)).trunk.stages[0][0]
    torches = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.SiLU(), nn.GroupNorm(2, 6), nn.Conv2d(6, channels, 3, padding=1)
    )
    return {"block": (block, 8), "torch": (torches, channels)}


@pytest.mark.parametrize("name", ["block", "torch"])
def test_derivatives_of_both_orders_are_right(name):
    module, channels = layers()[name]
    module = module.double()
    x = torch.randn(2, channels, 3, 3, dtype=F64, requires_grad=True)
    parameters = tuple(module.parameters())
    call = lambda x, *_: recomputed(module, x)
    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *parameters), atol=1e-4, fast_mode=True)


def test_several_inputs_and_outputs_have_their_derivatives():
    part = Two().double()
    x, z = (torch.randn(2, 2, 3, 3, dtype=F64, requires_grad=True) for _ in range(2))
    call = lambda x, z, *_: recomputed(part, x, 3, z)
    found, expected = call(x, z), part(x, 3, z)
    assert isinstance(found, tuple) and all(torch.equal(a, b) for a, b in zip(found, expected))
    assert torch.autograd.gradcheck(call, (x, z, *part.parameters()))
    assert torch.autograd.gradgradcheck(call, (x, z, *part.parameters()))
    only = torch.autograd.grad(recomputed(part, x, 3, z)[1].sum(), (x, z))
    assert all(torch.allclose(a, b) for a, b in zip(only, torch.autograd.grad(part(x, 3, z)[1].sum(), (x, z))))


class Network(nn.Module):
    """A network of parts, recomputed or not."""

    def __init__(self, parts, again):
        super().__init__()
        self.parts, self.again = nn.ModuleList(parts), again

    def forward(self, x):
        for part in self.parts:
            x = recomputed(part, x) if self.again else part(x)
        return x.square().mean((2, 3))


def gradients(network, y, **options):
    """Return the gradient of a loss of outputs and score by every parameter, and what the step found."""
    network.zero_grad()
    found = cdn_kernels.score_matching_step(
        network, y, lambda outputs, score: outputs.square().sum() + (score - 1).square().sum(), **options
    )
    return [None if p.grad is None else p.grad.clone() for p in network.parameters()], found


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("intercept", [False, True])
def test_a_step_has_the_gradient_of_the_whole_network(impl, intercept, monkeypatch):
    if intercept:
        monkeypatch.setattr(torch_functions, "CHOICE", "all")
        monkeypatch.setattr(torch_functions, "_is_tiny", lambda *tensors: False)
    parts = [layers()["torch"][0].double() for _ in range(3)]
    parts[1][0].weight.requires_grad_(False)
    y = torch.randn(3, 4, 6, 6, dtype=F64)
    expected, plain = gradients(Network(parts, False), y, impl=impl)
    found, step = gradients(Network(parts, True), y, impl=impl)
    assert torch.allclose(step.score, plain.score, rtol=1e-12, atol=1e-12)
    for a, b in zip(found, expected):
        assert (a is None) == (b is None)
        assert a is None or (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bf16", 5e-2)])
@pytest.mark.parametrize("head", ["linear", "log-energy"])
def test_the_joint_step_is_the_same_to_rounding(precision, tolerance, head):
    model = cdn.gradresnet_small(in_channels=1, width=8, head=head)
    x, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    found = []
    for again in (False, True):
        model.zero_grad()
        model.trunk.recompute = again
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = cdn.joint_step(model, x, labels, cdn.NoiseLevels(clean_share=0.3), cdn.Noise(0, 1))
        found.append([loss, *(p.grad.clone() for p in model.parameters())])
    plain, again = found
    assert all((a - b).norm() <= tolerance * b.norm() for a, b in zip(again, plain))


def test_a_parameter_gets_one_complete_gradient():
    network = Network([layers()["torch"][0] for _ in range(2)], True)
    seen = []
    for name, p in network.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.append(name))
    gradients(network, torch.randn(2, 4, 6, 6))
    assert sorted(seen) == sorted(name for name, _ in network.named_parameters())


def test_the_score_computes_no_gradients_of_filters(monkeypatch):
    module, asked = layers()["block"][0], []
    original = cdn_kernels.recompute._Part.gradients

    def gradients(part, samples, grads, wanted, **options):
        asked.append(wanted)
        return original(part, samples, grads, wanted, **options)

    monkeypatch.setattr(cdn_kernels.recompute._Part, "gradients", gradients)
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    torch.autograd.grad(recomputed(module, x).sum(), x, create_graph=True)
    assert asked == [[True, *[False] * len(list(module.parameters()))]]


def test_random_numbers_are_those_of_the_forward():
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Dropout(0.5), nn.Softplus(), nn.Conv2d(4, 4, 3, padding=2))
    found = []
    for again in (False, True):
        torch.manual_seed(3)
        y = torch.ones(2, 4, 8, 8)
        found.append([*gradients(Network([module] * 2, again), y)[0], torch.rand(3)])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


def test_it_takes_less_memory():
    parts = [layers(8)["torch"][0] for _ in range(12)]
    y = torch.randn(16, 8, 32, 32)
    plain, again = (peak_bytes(lambda again=again: gradients(Network(parts, again), y), "cpu") for again in (0, 1))
    assert again < 0.6 * plain


def test_without_a_gradient_or_under_transforms_it_is_a_plain_call():
    module, channels = layers()["torch"]
    x = torch.randn(2, channels, 5, 5)
    with torch.no_grad():
        assert torch.equal(recomputed(module, x), module(x))
    summed = lambda call: torch.func.grad(lambda x: call(x).square().sum())(x)
    torch.testing.assert_close(summed(lambda x: recomputed(module, x)), summed(module))
    constant = nn.Flatten()
    assert recomputed(constant, x).grad_fn is None


def test_what_cannot_be_is_refused():
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    with pytest.raises(TypeError, match="recomputed: module must be a torch.nn.Module, got function"):
        recomputed(lambda x: x, x)
    normed = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"recomputed: BatchNorm2d '1' would count every batch again: freeze"):
        recomputed(normed, x)
    assert recomputed(normed.eval(), x).requires_grad

    class Dict(nn.Linear):
        def forward(self, x):
            return dict(out=super().forward(x))

    with pytest.raises(TypeError, match="recomputed: Dict must return a tensor or a tuple of tensors, got dict"):
        recomputed(Dict(5, 2), x)
    module = layers()["torch"][0]
    (first,) = torch.autograd.grad(recomputed(module, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="recomputed: third derivatives are not computed again"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)


def test_weights_that_changed_meanwhile_are_noticed():
    module = layers()["torch"][0]
    out = recomputed(module, torch.randn(2, 4, 5, 5)).sum()
    with torch.no_grad():
        module[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
