"""Gradients by filters of all sweeps of a step that are computed as one, and filters that calls of a step share."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

import cdn
from cdn_kernels import conv2d, conv2d_gelu, conv2d_gelu_conv2d, score_matching_step
from cdn_kernels.backends import cpu
from cdn_kernels.ops import filters
from cdn_kernels.ops.filters import FilterGradient
from tests.kernels.oracle import assert_as_exact_as_eager
from tests.kernels.passes import LAYOUTS
from tests.kernels.replays import assert_joint_steps_are_replayed

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


@pytest.fixture
def joined(monkeypatch):
    """Let the gradients of all filters wait, and return of how many convolutions each was computed."""
    monkeypatch.setattr(filters, "FEWEST_FILTERS", 1)
    monkeypatch.setattr(filters, "MOST_IMAGES", float("inf"))
    counts, value = [], FilterGradient.value
    monkeypatch.setattr(FilterGradient, "value", lambda self: [counts.append(len(self.pairs)), value(self)][1])
    return counts


def apart(monkeypatch):
    monkeypatch.setattr(filters, "FEWEST_FILTERS", float("inf"))


class Network(nn.Module):
    """Energies [B] of images, through every operation that takes filters."""

    def __init__(self, dtype=torch.float64, layout=torch.channels_last):
        super().__init__()
        torch.manual_seed(0)
        draw = lambda *shape: nn.Parameter((torch.randn(shape) / shape[1] ** 0.5 / shape[-1]).to(dtype=dtype))
        self.filters = nn.ParameterList([draw(8, 2, 3, 3), draw(16, 8, 3, 3), draw(8, 16, 3, 3), draw(6, 8, 1, 1)])
        self.to(memory_format=layout)

    def forward(self, y):
        first, second, third, last = self.filters
        h = conv2d_gelu(y, first, impl="cpu")
        h = h + conv2d_gelu_conv2d(h, second, third, impl="cpu")
        return conv2d(h, last, 2, impl="cpu").square().flatten(1).sum(1)


def images(dtype=torch.float64, layout=torch.channels_last, batch=3):
    return torch.randn(batch, 2, 6, 5, generator=torch.Generator().manual_seed(1)).to(dtype, memory_format=layout)


def loss(outputs, score):
    return score.square().mean() + outputs.square().mean()


def gradients(network, step=lambda network, y: score_matching_step(network, y, loss), **options):
    network.zero_grad()
    step(network, images(network.filters[0].dtype, **options))
    return [p.grad for p in network.filters]


def assert_equal(found, expected, tolerance=1e-13):
    for a, b in zip(found, expected, strict=True):
        assert type(a) is torch.Tensor and a.dtype == b.dtype and (a - b).norm() <= tolerance * b.norm()


def total_loss(network, y):
    """Return the loss of the step, with its graph."""
    outputs = network(y.requires_grad_())
    (score,) = torch.autograd.grad(outputs.sum(), y, create_graph=True)
    return loss(outputs, score)


def plainly(network, y):
    """Do what the step does by autograd alone."""
    total_loss(network, y).backward()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("step", [lambda n, y: score_matching_step(n, y, loss), plainly], ids=["step", "plain"])
def test_one_gradient_is_computed_of_both_sweeps(joined, monkeypatch, layout, step):
    network = Network(layout=layout)
    found = gradients(network, step, layout=layout)
    assert joined == [2] * 4
    apart(monkeypatch)
    assert_equal(found, gradients(network, step, layout=layout))
    assert len(joined) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_they_are_as_exact_as_eager(joined, dtype, stride):
    tensors = [t.to(dtype) for t in (images(), torch.randn(8, 2, 3, 3) / 4)]
    for op in (conv2d, conv2d_gelu):
        assert_as_exact_as_eager(
            lambda *a: op(*a, stride, impl="cpu"), lambda *a: op(*a, stride, impl="reference"), tensors
        )
    assert joined


def test_numerical_checks(joined):
    x, first, second = torch.randn(2, 2, 4, 3), torch.randn(4, 2, 3, 3) / 4, torch.randn(3, 4, 1, 1) / 2
    tensors = [t.double().requires_grad_() for t in (x, first, second)]
    pair = lambda *tensors: conv2d_gelu_conv2d(*tensors, 2, impl="cpu")
    single = lambda x, first: conv2d(x, first, 2, impl="cpu")
    for function, inputs in ((pair, tensors), (single, tensors[:2])):
        assert gradcheck(function, inputs) and gradgradcheck(function, inputs)
    assert joined


def test_sums_in_16_bits_are_rounded_once(joined, monkeypatch):
    network = Network(torch.bfloat16)
    truth = gradients(copy.deepcopy(network).double())
    errors = {}
    for name in ("joined", "apart"):
        errors[name] = [float((a - b).norm()) for a, b in zip(gradients(network), truth)]
        apart(monkeypatch)
    assert sum(errors["joined"]) < sum(errors["apart"])


def test_every_parameter_gets_one_complete_gradient(joined, monkeypatch):
    """Of hooks, tied filters, and filters that are frozen, or part of the loss themselves."""
    apart(monkeypatch)
    network = Network()

    def step(network, y):
        decayed = lambda outputs, score: loss(outputs, score) + network.filters[1].square().sum()
        twice = lambda y: network(y) + network(2 * y)
        score_matching_step(twice, y, decayed)

    network.filters[2].requires_grad_(False)
    expected = gradients(network, step)
    seen = []
    for p in (network.filters[0], network.filters[1], network.filters[3]):
        p.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    monkeypatch.setattr(filters, "FEWEST_FILTERS", 1)
    found = gradients(network, step)
    assert joined == [4] * 3 and found.pop(2) is None and expected.pop(2) is None
    assert_equal(found, expected)
    assert_equal(sorted(seen, key=torch.numel), sorted(expected, key=torch.numel))


def test_sizes_and_strides_of_one_filter_may_differ(joined, monkeypatch):
    weight = (torch.randn(2, 2, 3, 3).double() / 4).requires_grad_()

    def network(y):
        h = conv2d(y, weight, impl="cpu")
        return conv2d_gelu(torch.nn.functional.avg_pool2d(h, 2), weight, 2, impl="cpu").flatten(1).sum(1)

    found = []
    for _ in range(2):
        weight.grad = None
        score_matching_step(network, images(), loss)
        found.append(weight.grad)
        apart(monkeypatch)
    assert_equal(found[:1], found[1:])
    assert sum(joined) == 4 and max(joined) <= 2


def test_filters_are_rounded_once_a_step(joined):
    network, seen = Network(torch.float32), []

    def twice(y):
        seen.extend(filters.as_filters(network.filters[1], torch.bfloat16) for _ in range(2))
        return network(y) + network(y)

    with torch.autocast("cpu", torch.bfloat16):
        score_matching_step(twice, images(torch.float32), loss)
        assert filters.as_filters(network.filters[1], torch.bfloat16) is not seen[0]
    assert seen[0] is seen[1] and seen[0].dtype == torch.bfloat16
    assert joined == [4] * 4 and all(p.grad.dtype == torch.float32 for p in network.filters)


def test_filters_that_change_within_a_step_are_not_shared(joined):
    weight = nn.Parameter(torch.ones(2, 2, 1, 1).double())
    values = []

    def network(y):
        for _ in range(2):
            values.append(float(conv2d(y, weight, impl="cpu").detach().sum() / y.detach().sum()))
            with torch.no_grad():
                weight.mul_(2)
        return conv2d(y, weight, impl="cpu").square().flatten(1).sum(1)

    score_matching_step(network, images(), loss)
    assert values == pytest.approx([2, 4])


def test_nothing_waits_for_what_could_not_read_it(joined):
    """Graphs that are differentiated again, and modes that see operations."""
    network, y = Network(), images().requires_grad_()
    total = network(y).sum()
    grads = torch.autograd.grad(total, list(network.filters), create_graph=True)
    assert all(g.requires_grad for g in grads)
    with FlopCounterMode(display=False):
        torch.autograd.grad(total, list(network.filters))
    assert joined == []


def test_batches_of_gradients(joined):
    network = Network()
    total = total_loss(network, images())
    several = torch.stack([torch.ones_like(total), 2 * torch.ones_like(total)])
    options = dict(is_grads_batched=True, retain_graph=True)
    batched = torch.autograd.grad(total, list(network.filters), several, **options)
    once = torch.autograd.grad(total, list(network.filters))
    for factor in (1, 2):
        assert_equal([b[factor - 1].clone() for b in batched], [factor * g for g in once])


def test_torch_without_such_tensors_computes_at_once(joined, monkeypatch):
    network = Network()
    expected = gradients(network)
    joined.clear()
    monkeypatch.setattr(filters.WrapperTensor, "exists", False)
    assert_equal(gradients(network), expected)
    assert joined == []


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomalies_are_found(joined):
    network = Network()
    with torch.autograd.detect_anomaly(check_nan=True):
        gradients(network)
        with torch.no_grad():
            network.filters[1][0, 0, 0, 0] = float("nan")
        with pytest.raises(RuntimeError, match="nan values"):
            gradients(network)


@pytest.mark.parametrize("retain", [True, False])
def test_gradients_accumulate_over_backward_passes(joined, retain):
    network = Network()
    total = total_loss(network, images(batch=2))
    total.backward(retain_graph=True)
    once = [p.grad.clone() for p in network.filters]
    total.backward(retain_graph=retain)
    assert_equal([p.grad for p in network.filters], [2 * g for g in once])


def pending(seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    return FilterGradient([(draw(2, 3, 4, 4), draw(2, 5, 4, 4))], filters.Convolved(3, 1, "cpu"))


ONES = torch.ones(5, 3, 3, 3, dtype=torch.float64)
READERS = {
    "plus a tensor": lambda a, b: a + ONES,
    "a tensor plus it": lambda a, b: ONES + a,
    "plus another": lambda a, b: (a + b) + ONES,
    "minus another": lambda a, b: a - b,
    "plus twice another": lambda a, b: torch.add(a, b, alpha=2),
    "added in place": lambda a, b: ONES.clone().add_(a),
    "clone": lambda a, b: a.clone(),
    "norm": lambda a, b: a.norm(),
    "isnan": lambda a, b: a.isnan(),
    "to": lambda a, b: a.to(torch.float32),
    "stack": lambda a, b: torch.stack([a, b]),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_whatever_reads_a_gradient_gets_its_value(read):
    found, expected = read(pending(0), pending(1)), read(pending(0).value(), pending(1).value())
    assert type(found) is torch.Tensor and found.dtype == expected.dtype
    assert torch.allclose(found.double(), expected.double(), rtol=1e-12)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_recorded_steps_join_them_too(joined, precision):
    torch.manual_seed(0)
    model = cdn.GradResNet(3, in_channels=3, width=8, blocks=(1, 1))
    assert_joint_steps_are_replayed(model, torch.rand(4, 3, 9, 7), torch.tensor([0, 2, 1, 0]), precision)
    assert max(joined) == 2  # the sweep of all images, and that of tangents of noisy ones


def test_few_filters_and_many_images_do_not_wait(monkeypatch):
    seen = []
    monkeypatch.setattr(FilterGradient, "value", lambda self: seen.append(self))
    gradients(Network())
    big = nn.Parameter(torch.randn(96, 96, 3, 3) / 30)
    network = lambda y: conv2d(y, big, impl="cpu").square().flatten(1).sum(1)
    score_matching_step(network, torch.randn(8, 96, 16, 16), lambda outputs, score: score.square().mean())
    assert seen == [] and big.grad is not None
