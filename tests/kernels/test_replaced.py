"""After any call of the library a module is as it was: the same parameters, buffers, attributes, modes and hooks."""

import pytest
import torch
from torch import nn

import cdn
import cdn_kernels
from cdn_kernels.replaced import replaced

DOUBLE = torch.float64


class TwoNames(nn.Module):
    """A submodule that is used by itself, and again inside of another, as in SchNet of PyTorch Geometric."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = nn.Sequential(self.first, nn.Tanh())

    def forward(self, x):
        return self.again(self.first(x))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


def frozen_bias():
    module = TwoNames()
    module.first.bias.requires_grad_(False)
    return module


def hooked():
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    module[0].register_forward_hook(lambda module, args, out: 2 * out)
    module[0].weight.register_hook(lambda grad: 3 * grad)
    return module


def counting():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
    module[1].eval()
    return module


MODULES = {
    "two names": TwoNames,
    "tied": Tied,
    "frozen": frozen_bias,
    "hooks": hooked,
    "modes and buffers": counting,
    "parametrized": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh()),
    "weight norm by hooks": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Tanh()),
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh()).eval(),
    "lists": lambda: nn.Sequential(nn.ModuleList([TwoNames()])[0], nn.Linear(4, 4)),
}
FIRST_ORDER = {"parametrized", "weight norm by hooks"}
modules = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in MODULES.items()])
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")


def state(module):
    """Return all that a call may not change: which objects are where, and what they hold."""
    places = {
        (name, kind, key): (id(value), value.detach().clone(), value.requires_grad, type(value))
        for name, part in module.named_modules(remove_duplicate=False)
        for kind in ("_parameters", "_buffers")
        for key, value in getattr(part, kind).items()
        if value is not None
    }
    others = [
        (name, part.training, set(vars(part)), *(len(getattr(part, hooks)) for hooks in vars(part) if "hooks" in hooks))
        for name, part in module.named_modules(remove_duplicate=False)
    ]
    return places, others


def assert_unchanged(before, after):
    assert before[0].keys() == after[0].keys() and before[1] == after[1]
    for place, (identity, value, requires_grad, kind) in before[0].items():
        assert after[0][place][0] == identity and after[0][place][2:] == (requires_grad, kind), place
        assert torch.equal(after[0][place][1], value), place


def first_order(module, call):
    """Return the gradients of a loss by x and by all parameters, None for those that are frozen."""
    return gradients(module, lambda x: call(module, x).square().sum())


def second_order(module, call):
    """Return the same of a loss of the value and of the input gradient."""

    def loss(x):
        out = call(module, x)
        (g,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return g.square().sum() + out.sum()

    return gradients(module, loss)


def gradients(module, loss):
    x = torch.linspace(-1, 1, 12, dtype=DOUBLE).view(3, 4).requires_grad_()
    module.zero_grad()
    loss(x).backward()
    return [x.grad, *(p.grad.clone() for p in module.parameters() if p.requires_grad)]


@modules
def test_foreign_leaves_a_module_as_it_was_and_trains_it_every_time(make, request):
    torch.manual_seed(0)
    module = make().double()
    # torch has no second derivative of its weight norm in forward mode; foreign says so.
    order = first_order if request.node.callspec.id in FIRST_ORDER else second_order
    expected = order(module, lambda module, x: module(x))
    before = state(module)
    for _ in range(3):
        for mine, exact in zip(order(module, cdn_kernels.foreign), expected, strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)
        assert_unchanged(before, state(module))


def test_a_lazy_module_is_built_by_its_first_call():
    module = nn.Sequential(nn.LazyLinear(4, dtype=DOUBLE), nn.Tanh())
    x = torch.ones(2, 3, dtype=DOUBLE, requires_grad=True)
    out = cdn_kernels.foreign(module, x)
    built = list(module.parameters())
    assert module[0].weight.shape == (4, 3) and out.requires_grad
    torch.testing.assert_close(cdn_kernels.foreign(module, x), out)
    assert all(a is b for a, b in zip(module.parameters(), built))


def test_recurrent_layers_train():
    torch.manual_seed(0)
    layer = nn.LSTM(4, 4, batch_first=True).double()
    x = torch.randn(2, 3, 4, dtype=DOUBLE, requires_grad=True)
    call = lambda module, x: module(x)[0]
    weights = list(layer._flat_weights)
    (expected,) = torch.autograd.grad(call(layer, x).square().sum(), layer.weight_hh_l0)
    others = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    with replaced(layer, others):
        (found,) = torch.autograd.grad(call(layer, x).square().sum(), others["weight_hh_l0"])
    torch.testing.assert_close(found, expected)
    assert all(a is b for a, b in zip(layer._flat_weights, weights))


class Classifier(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x.flatten(1)[:, :4])


@modules
def test_a_protected_classifier_stays_as_it_was(make):
    torch.manual_seed(0)
    classifier = Classifier(make().double()).eval()
    y = torch.rand(3, 1, 8, 8, dtype=DOUBLE, requires_grad=True)
    classifier(y)
    before = state(classifier)
    protected = cdn.Protected(classifier, cdn.gradresnet_small(4, 1, width=8).double(), 0.2)
    for _ in range(2):
        protected(y).square().sum().backward()
        assert_unchanged(before, state(classifier))
    assert y.grad.abs().sum() > 0 and all(p.grad is None for p in classifier.parameters())
    assert all(p.requires_grad == b[2] for p, b in zip(classifier.parameters(), before[0].values()) if p is not None)
