"""Sums over processes, as one of them sees them: their order, when they begin, and gradients that nobody has."""

import pytest
import torch
from torch import nn

from cdn.processes import Processes
from cdn.training import reduction
from cdn.training.reduction import Reduction


class Noted(Processes):
    """One process of two that are alike: every sum is twice what it gives, and what happens is noted in order."""

    def __init__(self, happened):
        super().__init__(0, 2)
        object.__setattr__(self, "happened", happened)

    def adding(self, tensor):
        self.happened.append(f"send {tensor.numel()}")

        def wait():
            self.happened.append("wait")
            tensor.mul_(2)

        return wait

    def gather(self, value):
        return [value, value]


@pytest.fixture
def chain(monkeypatch):
    """Three layers, each a bucket of its own, and a parameter that is not used."""
    monkeypatch.setattr(reduction, "BUCKET", 1)
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(size, size + 1, bias=False) for size in (2, 3, 4))).double()
    return nn.ParameterDict({"unused": nn.Parameter(torch.ones(7, dtype=torch.float64))}), layers


def parameters(chain):
    unused, layers = chain
    return [*unused.values(), *layers.parameters()]


def backward(layers, scale=1.0):
    layers.zero_grad()
    loss = layers(torch.ones(5, 2, dtype=torch.float64)).square().mean() * scale
    loss.backward()
    return dict(loss=loss.detach())


@pytest.mark.parametrize("overlapped", [False, True])
def test_sums_come_in_one_order_and_begin_as_soon_as_they_can(chain, overlapped):
    unused, layers = chain
    happened = []
    backward(layers)
    expected = [2 * p.grad for p in layers.parameters()]
    one = Reduction(parameters(chain), ["loss", "denoising"], Noted(happened))
    for _ in range(2 * overlapped):  # once is enough
        one.overlap()
    for _ in range(3):
        happened.clear()
        one.complete = True
        named = zip(layers.parameters(), "abc")
        hooks = [p.register_hook(lambda g, name=name: happened.append(name)) for p, name in named]
        scalars = backward(layers)
        for hook in hooks:
            hook.remove()
        one.collect(scalars)
        one.finish("kind")
        found = one.hand_out("kind")
        sends = ["send 20", "send 12", "send 6", "send 7", "send 2"]
        if overlapped:
            assert happened == ["c", sends[0], "b", sends[1], "a", *sends[2:], *["wait"] * 5]
        else:
            assert happened == ["c", "b", "a", *sends, *["wait"] * 5]
        assert all(torch.equal(p.grad, value) for p, value in zip(layers.parameters(), expected))
        assert unused["unused"].grad is None  # as of one process alone
        assert found["loss"] == 2 * scalars["loss"] and found["denoising"] == 0


def test_earlier_parts_of_a_step_are_not_sent(chain):
    _, layers = chain
    happened = []
    one = Reduction(parameters(chain), ["loss"], Noted(happened))
    one.overlap()
    loss = lambda: layers(torch.ones(5, 2, dtype=torch.float64)).square().mean()
    loss().backward()
    assert not happened
    expected = [4 * p.grad for p in layers.parameters()]
    one.complete = True
    loss().backward()
    one.collect(dict(loss=torch.ones(())))
    one.finish("kind")
    one.hand_out("kind")
    assert all(torch.equal(p.grad, value) for p, value in zip(layers.parameters(), expected))


def test_who_has_no_gradient_sends_zeros(chain):
    unused, layers = chain
    one = Reduction(parameters(chain), ["loss"], Noted([]))
    one.collect({})
    one._touched["kind"] = [{0}] * 4  # another process has all
    one.finish("kind")
    assert one.hand_out("kind") == {"loss": 0}
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in parameters(chain))


def test_gradients_keep_the_layout_of_their_parameters():
    filters = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    half, full = nn.Parameter(torch.randn(5).double()), nn.Parameter(torch.randn(5))
    one = Reduction([filters, half, full], ["loss"], Noted([]))
    assert [bucket.memory.dtype for bucket in one.buckets] == [torch.float32, torch.float64, torch.float32]
    for p in (filters, half, full):
        p.grad = torch.randn_like(p)
    expected = [2 * p.grad for p in (filters, half, full)]
    one.collect({})
    one.finish("kind")
    one.hand_out("kind")
    for p, value in zip((filters, half, full), expected):
        assert torch.equal(p.grad, value) and p.grad.stride() == p.stride()
