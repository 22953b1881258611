"""The training step called as other people's networks want to be called."""

import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import cdn_kernels
from cdn_kernels.backends import cpu_engines
from cdn_kernels.ops import torch_functions

pytestmark = pytest.mark.filterwarnings("ignore:score_matching_step runs")


@pytest.fixture(autouse=True, params=["measured", "all"])
def convolutions(request, monkeypatch):
    """Those of networks this small are left to torch, unless all are taken over."""
    monkeypatch.setattr(torch_functions, "CHOICE", request.param)
    return request.param


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def compare(network, step, plain):
    """Call both, from no gradients, and compare what they left in those of the parameters."""
    found = []
    for call in (step, plain):
        network.zero_grad()
        result = call()
        found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        if call is step:
            given = result
    assert found[0] and len(found[0]) == len(found[1])
    for mine, exact in zip(*found):
        torch.testing.assert_close(mine, exact, rtol=1e-11, atol=1e-13)
    return given


def penalty(outputs, score):
    return (score.square().sum(tuple(range(1, score.dim()))) - 1).square().mean()


# ------------------------------------------------------------------------------------------------------------
# Densities of any shape
# ------------------------------------------------------------------------------------------------------------

DENSITIES = {
    "a scalar": lambda f: f.square().sum(),
    "a value per sample": lambda f: f.square().flatten(1).sum(1),
    "a column": lambda f: f.square().flatten(1).sum(1, keepdim=True),
    "a map of patches": lambda f: f[:, :1] ** 2,
}


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_densities_of_any_shape(density):
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 2, 3, 2)).double()
    y = double(3, 2, 6, 6)

    def plain():
        leaf = y.clone().requires_grad_()
        (score,) = torch.autograd.grad(density(network(leaf)).sum(), leaf, create_graph=True)
        penalty(None, score).backward()

    compare(network, lambda: cdn_kernels.score_matching_step(network, y, penalty, log_density=density), plain)
    leaf = y.clone().requires_grad_()
    (score,) = torch.autograd.grad(density(network(leaf)).sum(), leaf)
    torch.testing.assert_close(cdn_kernels.score(lambda y: density(network(y)), y), score)


# ------------------------------------------------------------------------------------------------------------
# Conditions, and several inputs
# ------------------------------------------------------------------------------------------------------------


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.classes = nn.Embedding(3, 4)
        self.body = nn.Sequential(nn.Linear(9, 8), nn.SiLU(), nn.Linear(8, 2))

    def forward(self, y, label, *, time):
        return self.body(torch.cat([y, self.classes(label), time[:, None]], 1))


def test_conditions_are_passed_on():
    network, y, label, time = Conditional().double(), double(5, 4), torch.tensor([0, 2, 1, 1, 0]), double(5)

    def plain():
        leaf = y.clone().requires_grad_()
        outputs = network(leaf, label, time=time)
        (score,) = torch.autograd.grad(outputs.logsumexp(1).sum(), leaf, create_graph=True)
        penalty(outputs, score).backward()

    options = dict(args=(label,), kwargs=dict(time=time))
    compare(network, lambda: cdn_kernels.score_matching_step(network, y, penalty, **options), plain)


class Energies(nn.Module):
    """Energies of molecules from kinds of atoms, their positions, a strain and the molecules they belong to."""

    def __init__(self):
        super().__init__()
        self.kinds = nn.Embedding(5, 4)
        self.body = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, kinds, positions, strain, molecule):
        moved = positions + (positions[:, None] @ strain[molecule])[:, 0]
        of_atoms = self.body(torch.cat([self.kinds(kinds), moved], 1))[:, 0]
        return torch.zeros(len(strain), dtype=of_atoms.dtype).index_add(0, molecule, of_atoms)


class OfDict(Energies):
    def forward(self, atoms):
        return dict(energy=super().forward(atoms["kinds"], atoms["positions"], atoms["strain"], atoms["molecule"]))


ATOMS = dict(
    kinds=torch.tensor([0, 1, 4, 2, 2, 1]),
    positions=double(6, 3),
    strain=torch.zeros(2, 3, 3, dtype=torch.float64),
    molecule=torch.tensor([0, 0, 0, 1, 1, 1]),
)


def forces_and_stress(positions, strain):
    return (positions - 1).square().mean() + (strain + 0.5).square().mean()


def plain_forces(network):
    positions, strain = (ATOMS[name].clone().requires_grad_() for name in ("positions", "strain"))
    energy = Energies.forward(network, ATOMS["kinds"], positions, strain, ATOMS["molecule"])
    forces_and_stress(*torch.autograd.grad(energy.sum(), (positions, strain), create_graph=True)).backward()


def test_samples_in_a_tuple_fill_as_many_places():
    network = Energies().double()
    y = ATOMS["kinds"], ATOMS["positions"], ATOMS["strain"]
    loss = lambda energy, score: forces_and_stress(*score[1:])
    step = compare(
        network,
        lambda: cdn_kernels.score_matching_step(network, y, loss, args=(ATOMS["molecule"],)),
        lambda: plain_forces(network),
    )
    assert step.score[0] is None and not any(s.requires_grad for s in step.score[1:])
    assert not y[1].requires_grad


def test_samples_in_a_dict():
    network = OfDict().double()
    loss = lambda outputs, score: forces_and_stress(score["positions"], score["strain"])
    density = lambda outputs: outputs["energy"]
    step = compare(
        network,
        lambda: cdn_kernels.score_matching_step(network, ATOMS, loss, log_density=density),
        lambda: plain_forces(network),
    )
    assert step.score["kinds"] is None and step.score["strain"].shape == (2, 3, 3)


def test_samples_that_do_not_count_have_no_score_and_those_that_require_grad_get_theirs():
    network = nn.Linear(3, 1).double()
    first, second = double(4, 3).requires_grad_(), double(4, 3)
    loss = lambda outputs, score: (score[0] * (1 + first)).sum() + score[1].square().sum()
    step = cdn_kernels.score_matching_step(lambda a, b: network(a)[:, 0], (first, second), loss)
    assert torch.equal(step.score[1], torch.zeros(4, 3, dtype=torch.float64))
    torch.testing.assert_close(first.grad, network.weight.detach().expand(4, 3))


# ------------------------------------------------------------------------------------------------------------
# Losses that differentiate, outputs of any kind
# ------------------------------------------------------------------------------------------------------------


def laplacian(score, y):
    columns = range(y.shape[1])
    return sum(torch.autograd.grad(score[:, i].sum(), y, create_graph=True)[0][:, i] for i in columns)


class Residual(nn.Module):
    def forward(self, u, gradient, y):
        return (laplacian(gradient, y) - y[:, 0]).square().mean()


@pytest.mark.parametrize(
    "loss",
    [
        lambda u, gradient, y: Residual()(u, gradient, y),
        Residual(),
        lambda u, gradient, *, y: Residual()(u, gradient, y),
    ],
    ids=["positional", "module", "by name"],
)
def test_a_loss_may_use_the_samples(loss):
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    y = double(5, 2)

    def plain():
        leaf = y.clone().requires_grad_()
        (score,) = torch.autograd.grad(network(leaf).sum(), leaf, create_graph=True)
        Residual()(None, score, leaf).backward()

    compare(network, lambda: cdn_kernels.score_matching_step(network, y, loss), plain)


def test_a_density_may_use_the_samples():
    network = nn.Linear(3, 3).double()
    y = double(4, 3)
    density = lambda outputs, y: (outputs * y).sum(1)  # a network that returns a field, as GSDRUNet does
    step = cdn_kernels.score_matching_step(network, y, penalty, log_density=density)
    torch.testing.assert_close(step.score, cdn_kernels.score(lambda y: (network(y) * y).sum(1), y))


@dataclass(frozen=True)
class Outputs:
    logits: Tensor
    features: list


@dataclass
class Nested:
    inside: Outputs


class Named(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(3, 2)

    def forward(self, y):
        logits = self.layer(y)
        return self.kind(logits=logits, features=[logits, dict(more=2 * logits)])


KINDS = {
    "dataclass": Outputs,
    "namespace": SimpleNamespace,
    "dataclass in a dataclass": lambda **fields: Nested(Outputs(**fields)),
    "dataclass in a dict": lambda **fields: dict(inside=Outputs(**fields)),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_outputs_are_detached(kind):
    inside = lambda outputs: getattr(outputs, "inside", outputs["inside"] if isinstance(outputs, dict) else outputs)
    step = cdn_kernels.score_matching_step(
        Named(kind), torch.randn(4, 3), penalty, log_density=lambda outputs: inside(outputs).logits
    )
    outputs = inside(step.outputs)
    tensors = outputs.logits, outputs.features[0], outputs.features[1]["more"]
    assert not any(t.requires_grad for t in tensors) and torch.equal(tensors[2], 2 * tensors[0])


# ------------------------------------------------------------------------------------------------------------
# Interception
# ------------------------------------------------------------------------------------------------------------


class Forces(nn.Module):
    """A model that differentiates inside its own forward."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3))

    def forward(self, y):
        y = y.detach().requires_grad_()
        return torch.autograd.grad(self.body(y).sum(), y, create_graph=True)[0]


def test_first_order_for_models_that_differentiate_themselves():
    network, y = Forces().double(), double(3, 2, 7, 7)

    def step():
        with cdn_kernels.first_order():
            loss = (network(y) - 1).square().mean()
        loss.backward()

    compare(network, step, lambda: (network(y) - 1).square().mean().backward())
    assert torch.overrides._get_current_function_mode() is None


class Twice(nn.Module):
    """Filters and images of one shape, in each of two checkpoints."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

    def forward(self, y):
        for first, second in (self.layers[:2], self.layers[2:]):
            y = checkpoint(lambda h, f=first, s=second: F.silu(s(F.silu(f(h)))), y, use_reentrant=False)
        return y.mean((2, 3))


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_checkpoints(monkeypatch, impl, layout):
    monkeypatch.setattr(cpu_engines, "CHOICE", "winograd")  # the library's kernels for all that they can do
    network = Twice().double().to(memory_format=layout)
    y = double(3, 3, 3, 3).contiguous(memory_format=layout)

    def plain():
        leaf = y.clone().requires_grad_()
        h = leaf
        for layer in network.layers:
            h = F.silu(layer(h))
        outputs = h.mean((2, 3))
        (score,) = torch.autograd.grad(outputs.logsumexp(1).sum(), leaf, create_graph=True)
        penalty(outputs, score).backward()

    compare(network, lambda: cdn_kernels.score_matching_step(network, y, penalty, impl=impl), plain)


class CheckpointedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True)

    def forward(self, y):
        return checkpoint(self.layer, y, use_reentrant=False).mean(1)


def test_checkpoints_around_attention():
    network, y = CheckpointedAttention().double(), double(3, 5, 6)

    def plain():
        leaf = y.clone().requires_grad_()
        outputs = network.layer(leaf).mean(1)
        (score,) = torch.autograd.grad(outputs.logsumexp(1).sum(), leaf, create_graph=True)
        penalty(outputs, score).backward()

    def inside():
        leaf = y.clone().requires_grad_()
        with cdn_kernels.first_order(network):
            outputs = network(leaf)
            (score,) = torch.autograd.grad(outputs.logsumexp(1).sum(), leaf, create_graph=True)
            penalty(outputs, score).backward()

    for impl in ("auto", "reference"):
        run = lambda impl=impl: cdn_kernels.score_matching_step(network, y, penalty, impl=impl)
        compare(network, run, lambda: in_plain_attention(plain))
    compare(network, inside, lambda: in_plain_attention(plain))


def in_plain_attention(call):
    with sdpa_kernel(SDPBackend.MATH):
        return call()


# ------------------------------------------------------------------------------------------------------------
# What is left alone
# ------------------------------------------------------------------------------------------------------------


def kernels_of_attention():
    return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()


def test_attention_is_chosen_once_for_all_threads_and_the_last_one_restores_it():
    before = kernels_of_attention()
    assert before == (True, True)
    second, leave = threading.Event(), threading.Event()

    def other():
        with cdn_kernels.first_order():
            second.set()
            leave.wait(60)

    with cdn_kernels.first_order():
        thread = threading.Thread(target=other)
        thread.start()
        assert second.wait(60)
    assert kernels_of_attention() == (False, True)  # for the other one is still inside
    leave.set()
    thread.join()
    assert kernels_of_attention() == before


class Watched(nn.Module):
    """Notes whether its functions are seen."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.seen = layer, []

    def forward(self, y):
        self.seen.append(torch.overrides._get_current_function_mode() is not None)
        return self.layer(y).flatten(1)


def seen_in_three_steps(network, *shapes):
    for shape in shapes:
        cdn_kernels.score_matching_step(network, double(*shape), penalty)
    return network.seen


def test_networks_are_watched_while_they_may_gain(convolutions):
    small, large = (2, 3, 6, 6), (2, 3, 7, 7)
    convolution = lambda: Watched(nn.Conv2d(3, 2, 3)).double()
    gains = convolutions == "all"
    # The first step shows that nothing gains at these sizes; others may.
    assert seen_in_three_steps(convolution(), small, small, large, large) == [True, gains, True, gains]
    assert seen_in_three_steps(Watched(nn.Linear(6, 2)).double(), (2, 6), (2, 6)) == [False, False]
    network = convolution()
    for watched in (None, network, network):
        with cdn_kernels.first_order(watched):
            network(double(*small))
    assert network.seen == [True, True, gains]


def test_a_loss_may_call_the_network_again(convolutions):
    critic = Watched(nn.Conv2d(3, 2, 5, stride=2, padding=2)).double()
    between, real, fake = (double(4, 3, 8, 8) for _ in range(3))
    loss = lambda outputs, score: critic(fake).mean() - critic(real).mean() + penalty(outputs, score)
    density = lambda f: f.square().sum(1)
    step = lambda network=critic: cdn_kernels.score_matching_step(network, between, loss, log_density=density)

    def plain():
        x = between.clone().requires_grad_()
        outputs = critic(x)
        (score,) = torch.autograd.grad(density(outputs).sum(), x, create_graph=True)
        loss(outputs, score).backward()

    gains = convolutions == "all"
    compare(critic, step, plain)
    # Nothing gains at these sizes, which is learned for the network and for the loss.
    assert critic.seen == [True] * 3 + [False] * 3
    critic.seen.clear()
    step()
    assert critic.seen == [gains] * 3
    critic.seen.clear()
    # Of a function it could not be learned.
    step(lambda y: critic(y))
    assert critic.seen == [True, False, False]


@pytest.mark.parametrize("most", [0, 1e5], ids=["left out", "differentiated, too"])
def test_samples_get_no_gradient_and_what_else_has_one_does(monkeypatch, most):
    monkeypatch.setattr("cdn_kernels.step._MOST_UNASKED", most)
    network, y = nn.Linear(3, 2).double(), double(4, 3)
    temperature, theirs = double(1).requires_grad_(), []

    def loss(outputs, score, y):
        theirs.append(y)
        return (temperature * score).square().sum()

    cdn_kernels.score_matching_step(network, y, loss)
    assert y.grad is None and not y.requires_grad and theirs[0] is not y
    assert temperature.grad is not None and network.weight.grad is not None
    assert (theirs[0].grad is None) == (most == 0)
