"""Steps that are replayed on a CPU: the same bits as the function gives, and a plain call wherever that is in doubt."""

import contextlib
import re

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cdn_kernels
from cdn_kernels import Graphed, Noise, NoiseLevels
from cdn_kernels.backends import cpu
from cdn_kernels.phases import watch
from cdn_kernels.recording import MOST_MISSES, MOST_RECORDINGS, Replayed
from tests.kernels.replays import CALLS, CPU, silent

pytestmark = pytest.mark.skipif(bool(cpu.MISSING), reason=str(cpu.MISSING))


class Function:
    """A function of one tensor that counts its calls."""

    def __init__(self, of, x=None):
        self.of, self.calls = of, 0
        self.x = torch.arange(12.0).view(3, 4).sub_(5.5) if x is None else x

    def __call__(self):
        self.calls += 1
        return self.of(self.x)


def values(result):
    tensors = result if isinstance(result, tuple) else (result,)
    return [t.clone() for t in tensors]


def check_same(function, *, replayed=True):
    """Call a function and its replays side by side, on inputs that change."""
    plain, recorded = Function(function), Function(function)
    graphed = Replayed(recorded, silent)
    for step in range(CALLS):
        for one in (plain, recorded):
            one.x.mul_(-0.7).add_(step / 8)
        for expected, found in zip(values(plain()), values(graphed()), strict=True):
            assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert (recorded.calls < CALLS) == replayed


def padded(x):
    total = torch.zeros(5, 4)
    total[1:4] += x
    return total


def both_orders(x):
    y = x.detach().requires_grad_()
    (score,) = torch.autograd.grad(torch.nn.functional.gelu(y).sum(), y, create_graph=True)
    return torch.autograd.grad(score.square().sum(), y)[0]


def by_the_library(x):
    images = torch.stack([x, 2 * x]).expand(8, 2, 3, 4).transpose(0, 1).contiguous()
    out = cdn_kernels.gelu_group_norm(images.contiguous(memory_format=torch.channels_last), torch.ones(8), 2)
    return out, cdn_kernels.gelu(x.bfloat16()), cdn_kernels.channel_mean(out)


OPERATIONS = {
    "pointwise": lambda x: torch.where(x > 0, x, -2 * x),
    "cast": lambda x: x.double() + x.bfloat16(),
    "views": lambda x: x.t()[1:].reshape(-1, 3).unsqueeze(0).expand(2, -1, -1) + 1,
    "a view of what is new": lambda x: (x * 2).t(),
    "a view of what was there": lambda x: x[1:],
    "several results": lambda x: x.sort(1, descending=True),
    "results and indices": lambda x: x.max(1),
    "products": lambda x: torch.addmm(x @ x.t(), x, x.t(), beta=0.5),
    "in place": lambda x: (x * 2).clamp_(0).add_(x),
    "in place on a constant": lambda x: torch.zeros(3, 4).add_(x),
    "in place on a part of a constant": padded,
    "a constant as the result": lambda x: torch.full((2,), 3.0),
    "written out": lambda x: torch.mul(x, 3, out=torch.empty(3, 4)),
    "indexing": lambda x: x[x.argmax(0)],
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], 2 * x[None], x[None]),
    "convolution": lambda x: torch.conv2d(x[None, None], torch.ones(2, 1, 2, 2)),
    "norm of a list": lambda x: torch.nn.utils.get_total_norm([x, 2 * x]),
    "no copy": lambda x: x.contiguous().float(),
    "first and second order": both_orders,
    "operations of the library": by_the_library,
}


@pytest.mark.parametrize("function", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_are_replayed(function):
    check_same(function)


def test_what_others_write_into_a_result_does_not_stay():
    """A constant is written again, if somebody else may have written into it."""
    graphed = Replayed(Function(lambda x: torch.ones(3)), silent)
    for _ in range(CALLS):
        result = graphed()
        assert torch.equal(result, torch.ones(3))
        result.zero_()


def test_state_outside_changes_as_often_as_the_function_is_called():
    state, plain = torch.zeros(3, 4), torch.zeros(3, 4)
    x = torch.ones(3, 4)
    graphed = Replayed(Function(lambda x: state.mul_(2).add_(x), x), silent)
    for _ in range(CALLS):
        x.add_(1)
        plain.mul_(2).add_(x)
        graphed()
    assert torch.equal(state, plain)


@pytest.mark.parametrize("offset", [0, 5])
def test_noise_follows_the_tensor_that_holds_its_position(offset):
    position, images = torch.tensor(offset), torch.zeros(2, 3, 4, 4)
    graphed = Replayed(lambda: cdn_kernels.sample_noise(images, NoiseLevels(), Noise(3, position)), silent)
    for step in range(CALLS):
        position.fill_(offset + step)
        expected = cdn_kernels.sample_noise(images, NoiseLevels(), Noise(3, offset + step))
        assert all(map(torch.equal, graphed(), expected))


# ------------------------------------------------------------------------------------------------------------
# What cannot be replayed
# ------------------------------------------------------------------------------------------------------------


class WithHook(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.layer.register_forward_hook(lambda *_: None)

    def forward(self, x):
        return self.layer(x)


HOOKED = nn.Parameter(torch.ones(4))
HOOKED.register_hook(lambda gradient: gradient)


def parameter_with_hook(x):
    HOOKED.grad = None
    (x @ HOOKED).sum().backward()
    return HOOKED.grad


def with_counter(counts=[0]):  # noqa: B006  # the state is the point
    def function(x):
        counts[0] += 1
        return x * counts[0]

    return function


def changing_then_looking(x):
    x.add_(1)
    return x * float(x.sum())


WEIGHT = nn.Parameter(torch.ones(4))


def with_a_gradient_that_has_a_graph(x):
    WEIGHT.grad = None
    (x @ WEIGHT).square().sum().backward(create_graph=True)
    return x + 0


def sparse(x):
    return x.to_sparse().to_dense()


REFUSED = {
    "a result with a graph": (lambda x: x @ WEIGHT, "has a graph"),
    "a gradient with a graph": (with_a_gradient_that_has_a_graph, "has a graph"),
    "sparse tensors": (sparse, "cannot be|sparse|depends on values"),
    "random numbers": (lambda x: x + torch.rand(3, 4), "draws random numbers"),
    "dropout": (lambda x: torch.dropout(x, 0.5, True), "draws random numbers"),
    "attention with dropout": (
        lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5),
        "draws random numbers",
    ),
    "a shape of values": (lambda x: x[x > 0], "depends on values"),
    "hooks of modules": (WithHook().__call__, "Linear, has hooks"),
    "hooks of parameters": (parameter_with_hook, "a parameter has hooks"),
    "a value, after changes": (changing_then_looking, "looks at a value"),
    "numbers of Python": (with_counter(), "did not give what the function gives"),
    "data of the host": (lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]), "is new at every call"),
    "a shape in place": (lambda x: (x + 1).t_(), "shape in place"),
}


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("function, reason", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_replayed_runs_and_says_so_once(function, reason):
    said = []
    counted = Function(function)
    graphed = Replayed(counted, said.append)
    for _ in range(CALLS):
        graphed()
    assert counted.calls == CALLS
    (sentence,) = said
    assert re.fullmatch(f"steps run without a recording, because .*({reason}).*", sentence)


def test_distributed_modules_are_refused(monkeypatch):
    class Parallel(nn.Linear):
        pass

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Parallel)
    said, module = [], Parallel(4, 2)
    graphed = Replayed(Function(lambda x: module(x)), said.append)
    for _ in range(CALLS):
        graphed()
    assert len(said) == 1 and "DistributedDataParallel, which talks to other processes" in said[0]


def test_operations_of_others_are_refused():
    with torch.library._scoped_library("recording_of_others", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
        said, counted = [], Function(lambda x: torch.ops.recording_of_others.twice(x))
        graphed = Replayed(counted, said.append)
        for _ in range(CALLS):
            assert torch.equal(graphed(), 2 * counted.x)
    assert len(said) == 1 and "not torch's own" in said[0]


def test_large_steps_run_as_they_are_and_say_nothing():
    counted = Function(lambda x: x * 2)
    graphed = Replayed(counted, silent, largest=8)
    for _ in range(CALLS):
        graphed()
    assert counted.calls == CALLS


# ------------------------------------------------------------------------------------------------------------
# What changes between calls
# ------------------------------------------------------------------------------------------------------------


class Work:
    """A step of a network with parameters, a buffer and modes; gradients accumulate unless they are cleared."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(1))
        self.network.append(nn.Linear(8 * 16, 3))
        self.x, self.calls = torch.linspace(-1, 1, 4 * 2 * 16).view(4, 2, 4, 4), 0

    def __call__(self):
        self.calls += 1
        step = cdn_kernels.score_matching_step(
            self.network, self.x, lambda out, score: (out.sum() + score).square().mean()
        )
        return step.loss


def cleared(work):
    for p in work.network.parameters():
        p.grad = None


def new_memory(work):
    work.network[0].weight.data = work.network[0].weight.data.clone() * 1.5


def new_parameter(work):
    work.network[4].weight = nn.Parameter(work.network[4].weight.detach() * 0.5)


def other_dtype(work):
    work.network.double()
    work.x = work.x.double()


def flattened(work):
    """Put all parameters into one memory, as some optimizers do."""
    parameters = list(work.network.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.data = part.view(p.shape)


CHANGES = {
    "nothing": lambda work: None,
    "values": lambda work: work.x.mul_(2),
    "weights in place": lambda work: work.network[0].weight.data.mul_(2),
    "training flag of all": lambda work: work.network.eval(),
    "training flag of one": lambda work: work.network[1].eval(),
    "requires_grad": lambda work: work.network[0].weight.requires_grad_(False),
    "memory of a parameter": new_memory,
    "another parameter": new_parameter,
    "another buffer": lambda work: setattr(work.network[1], "running_mean", torch.ones(8)),
    "dtype": other_dtype,
    "gradients cleared": cleared,
    "parameters in one memory": flattened,
    "a gradient replaced": lambda work: setattr(work.network[0].weight, "grad", torch.ones(8, 2, 3, 3)),
}


class Cleared:
    """A step of some work that clears the gradients first, if it shall."""

    def __init__(self, clearing):
        self.work, self.clearing = Work(), clearing

    def __call__(self):
        if self.clearing:
            cleared(self.work)
        return self.work()


def check_alike(plain, recorded, graphed, times=CALLS):
    for _ in range(times):
        assert torch.equal(graphed(), plain())
        networks = plain.work.network, recorded.work.network
        for expected, found in zip(*(network.parameters() for network in networks), strict=True):
            assert (found.grad is None) == (expected.grad is None)
            assert expected.grad is None or torch.equal(found.grad, expected.grad)
        for expected, found in zip(*(network.buffers() for network in networks), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:score_matching_step runs")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("clearing", [True, False], ids=["cleared inside", "accumulated"])
def test_changes_are_seen(change, clearing):
    plain, recorded = Cleared(clearing), Cleared(clearing)
    graphed = Replayed(recorded, silent)
    check_alike(plain, recorded, graphed)
    assert recorded.work.calls < CALLS
    for one in (plain, recorded):
        change(one.work)
    check_alike(plain, recorded, graphed)
    assert recorded.work.calls < 2 * CALLS  # it is replayed again


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no grad": torch.no_grad,
    "threads": lambda: threads(torch.get_num_threads() + 1),
}


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("surrounding", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_other_surroundings_are_recorded_anew(surrounding):
    function = lambda x: ((x @ x.t()).requires_grad_() * 1.1).detach()
    plain, recorded = Function(function), Function(function)
    graphed = Replayed(recorded, silent)
    for around in (contextlib.nullcontext, surrounding, contextlib.nullcontext):
        for _ in range(CALLS):
            with around():
                expected, found = plain(), graphed()
            assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert recorded.calls < 2 * CALLS


def test_what_changes_again_and_again_is_given_up():
    said, layer = [], nn.Linear(4, 2)
    graphed = Replayed(Function(lambda x: layer(x).detach()), said.append)
    for _ in range(MOST_RECORDINGS + 1):
        layer.weight = nn.Parameter(torch.rand(2, 4))
        for _ in range(CALLS):
            graphed()
    assert said == [f"steps run without a recording, because what it works on changed {MOST_RECORDINGS} times"]


def test_a_value_that_decides_is_looked_at_again():
    function = lambda x: x * 2 if float(x.sum()) > 0 else x * 3
    recorded = Function(function, torch.ones(3, 4))
    graphed = Replayed(recorded, silent)
    for sign in [1] * CALLS + [-1, 1, -1, 1]:
        recorded.x.copy_(sign * torch.ones(3, 4))
        assert torch.equal(graphed(), function(recorded.x))
    assert recorded.calls < CALLS


def test_a_value_that_always_changes_is_not_looked_at_for_ever():
    said, counted = [], Function(lambda x: x * 2 if float(x.sum()) else x)
    graphed = Replayed(counted, said.append)
    for step in range(MOST_MISSES + CALLS):
        counted.x.fill_(1 + step)
        assert torch.equal(graphed(), 2 * counted.x)
    assert said == ["steps run without a recording, because a value that it looks at changes from call to call"]


class Watching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_whoever_watches_sees_the_function():
    counted = Function(lambda x: x * 2)
    graphed = Graphed(counted, CPU, say=silent)
    for _ in range(CALLS):
        graphed()
    before = counted.calls
    with Watching() as watching:
        graphed()
    assert watching.count and counted.calls == before + 1
    with watch(lambda name: contextlib.nullcontext()):
        graphed()
    assert counted.calls == before + 2
    graphed()
    assert counted.calls == before + 2


def test_a_recording_within_another():
    inner = Replayed(Function(lambda x: cdn_kernels.gelu(x)), silent)
    for _ in range(CALLS):
        inner()
    outer = Replayed(lambda: inner() + 1, silent)
    for step in range(CALLS):
        inner.function.x.fill_(step)
        assert torch.equal(outer(), cdn_kernels.gelu(inner.function.x) + 1)


def test_a_function_that_fails_fails_alike_and_can_go_on():
    state = dict(fails=True)

    def function(x):
        if state["fails"]:
            raise ValueError("no data")
        return x + 1

    graphed = Replayed(Function(function), silent)
    with pytest.raises(ValueError, match="no data"):
        graphed()
    state["fails"] = False
    for _ in range(CALLS):
        assert torch.equal(graphed(), graphed.function.x + 1)
