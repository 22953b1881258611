"""Names of torch that are not public are used in one place, and where one is gone, something else does its work."""

import ast
import itertools
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

import cdn_kernels
from benchmarks.peers import plain_compile
from benchmarks.steps import Problem
from cdn_kernels import torch_private
from cdn_kernels.ops.convolve import _strides_ascend

ROOT = Path(__file__).parents[2]
# Where private names may stand: each of these files says what happens without them, and is tested for it.
ALLOWED = {"cdn_kernels/torch_private.py", "benchmarks/harness/device_time.py", "benchmarks/peers/plain_compile.py"}


def private(name):
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def dotted(node):
    """Return the name that an expression is, as "torch.a.b", or None."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return owner and f"{owner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def private_names(source):
    """Find the private names of torch that a file imports or uses."""
    tree = ast.parse(source)
    modules = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= {alias.asname or alias.name for alias in node.names}
            yield from filter(private, names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("torch.") and private(a.name))
    for node in ast.walk(tree):
        name = dotted(node) if isinstance(node, ast.Attribute) else None
        if name and name.partition(".")[0] in modules and private(name):
            yield name


def test_the_search_finds_private_names():
    source = "import torch\nfrom torch.autograd import forward_ad as f\nfrom torch.utils import _pytree\n"
    source += "torch._C.a()\nf._level\ntorch.__version__\nself._x"
    assert set(private_names(source)) == {"torch.utils._pytree", "torch._C.a", "torch._C", "f._level"}


def test_private_names_are_used_where_they_can_be_replaced():
    files = [p for folder in ("cdn", "cdn_kernels", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    found = {p.relative_to(ROOT).as_posix(): set(private_names(p.read_text())) for p in files}
    assert len(files) > 100 and {file: names for file, names in found.items() if names and file not in ALLOWED} == {}


class Without:
    """A module or class as it is, but for one name; of names in it, deeper ones are hidden too."""

    def __init__(self, of, name):
        self._of, (self._first, _, self._rest) = of, name.partition(".")

    def __getattr__(self, name):
        if name != self._first:
            return getattr(self._of, name)
        if not self._rest:
            raise AttributeError(name)
        return Without(getattr(self._of, name), self._rest)


@pytest.fixture
def without(monkeypatch):
    """Hide a name of torch from torch_private; torch goes on using it."""
    return lambda name: monkeypatch.setattr(torch_private, "torch", Without(torch_private.torch, name))


TRANSFORMS, LEVEL = "_C._are_functorch_transforms_active", "autograd.forward_ad._current_level"


@pytest.mark.parametrize("hidden", [[], [TRANSFORMS], [LEVEL], [TRANSFORMS, LEVEL]], ids=str)
def test_transforms_are_noticed(without, hidden):
    for name in hidden:
        without(name)
    x, seen = torch.rand(3), []

    def look(v):
        seen.append((torch_private.transforms_are_active(), cdn_kernels.ops.common.transformed()))
        return (v * v).sum()

    look(x)
    torch.func.grad(look)(x)
    torch.func.vmap(look)(x[None])
    torch.func.jvp(look, (x,), (x,))
    assert seen == [(False, False), (True, True), (True, True), (True, True)]
    with forward_ad.dual_level():
        assert torch_private.forward_mode_is_active() and cdn_kernels.ops.common.transformed()
    assert not torch_private.forward_mode_is_active() and torch.is_grad_enabled()


def test_without_weight_norm_its_operation_is_named(without):
    without("_weight_norm")
    block = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
    x = torch.rand(2, 3, requires_grad=True)
    (g,) = torch.autograd.grad(cdn_kernels.foreign(block, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="uses aten::_weight_norm_interface_backward without derivative"):
        g.sum().backward()


def test_without_its_operation_the_gradient_of_a_softmax_is_the_same(without):
    p, g = torch.randn(3, 5, dtype=torch.float64).softmax(-1), torch.randn(3, 5, dtype=torch.float64)
    expected = torch_private.softmax_backward(p, g)
    without("ops.aten._softmax_backward_data")
    torch.testing.assert_close(torch_private.softmax_backward(p, g), expected, rtol=1e-14, atol=1e-14)


def test_without_either_name_gelu_can_be_transformed(without):
    without(TRANSFORMS)
    without(LEVEL)
    x = torch.randn(5, dtype=torch.float64)
    value, tangent = torch.func.jvp(cdn_kernels.gelu, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(value, cdn_kernels.gelu(x))
    torch.testing.assert_close(tangent, torch.func.vmap(torch.func.grad(cdn_kernels.gelu))(x))


# Names that a second derivative asks for.
GRADIENTS = ["_C._will_engine_execute_node", "_C._autograd._get_current_graph_task_keep_graph", "Tensor._is_view"]


def second_derivatives(block, x):
    """Return the derivatives of a network's score, through a block that is differentiated by its own vjp and jvp."""
    weight = torch.linspace(-1, 1, 9).view(3, 3).requires_grad_()
    x = x.clone().requires_grad_()
    out = cdn_kernels.foreign(block, x, weight)
    (score,) = torch.autograd.grad(out.logsumexp(1).sum(), x, create_graph=True)
    return [score, *torch.autograd.grad(score.square().sum() + out.square().sum(), [x, weight])]


@pytest.mark.parametrize("hidden", GRADIENTS)
@pytest.mark.parametrize("block", [lambda x, w: (x @ w).tanh(), lambda x, w: (x @ w).sinh().T.T], ids=["own", "view"])
def test_second_derivatives_are_the_same(without, hidden, block):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = second_derivatives(block, x)
    without(hidden)
    for found, wanted in zip(second_derivatives(block, x), expected):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_where_the_engine_cannot_be_asked_it_runs_everything(without):
    without(GRADIENTS[0])
    without(GRADIENTS[1])
    assert torch_private.will_run(None) and torch_private.graph_is_kept()


Pair = namedtuple("Pair", "first, second")


@pytest.mark.parametrize("hidden", [None, "utils._pytree"])
def test_tensors_are_detached_wherever_they_are(without, hidden):
    if hidden:
        without(hidden)
    x = torch.ones(2, requires_grad=True)
    tree = {"a": [x * 2, "text"], "b": Pair((x, None), 3), "c": torch.max(x * torch.ones(3, 2), 0)}
    found = torch_private.detached(tree)
    assert (
        type(found["b"]) is Pair and found["a"][1] == "text" and found["b"].second == 3 and found["b"].first[1] is None
    )
    assert type(found["c"]) is torch.return_types.max
    tensors = list(torch_private.tensors_in(found))
    assert len(tensors) == 4 and not any(t.requires_grad for t in tensors)
    assert x.requires_grad and torch.equal(tensors[0], torch.full((2,), 2.0))


class Registered:
    """A container that only torch's registry can open."""

    def __init__(self, content):
        self.content = content


torch.utils._pytree.register_pytree_node(
    Registered, lambda box: ([box.content], None), lambda values, context: Registered(*values)
)


def test_containers_that_torch_was_told_of_are_detached():
    x = torch.ones(2, requires_grad=True)
    found = torch_private.detached([Registered({"x": x * 2})])[0]
    assert type(found) is Registered and not found.content["x"].requires_grad


def test_without_a_dispatch_mode_it_cannot_be_entered(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils._python_dispatch", None)
    names = {"__name__": "alone"}
    exec(compile(Path(torch_private.__file__).read_text(), "alone", "exec"), names)
    with pytest.raises(RuntimeError, match="it has no TorchDispatchMode"), names["TorchDispatchMode"]():
        pass


@pytest.mark.parametrize("hidden", ["_dynamo", "_dynamo.config.trace_autograd_ops"])
def test_without_its_switch_a_compiled_step_is_refused(monkeypatch, hidden):
    monkeypatch.setattr(plain_compile, "torch", Without(torch, hidden))
    with pytest.raises(RuntimeError, match="cannot trace"):
        plain_compile.CompiledStep(Problem(width=8, batch=1, side=8))


def test_the_order_of_strides_is_told_as_torch_tells_it():
    from torch._prims_common import suggest_memory_format

    told = set()
    for shape in itertools.product((1, 2), repeat=4):
        for strides in itertools.product((0, 1, 2, 4, 8), repeat=4):
            x = torch.empty(40).as_strided(shape, strides)
            expected = suggest_memory_format(x) == torch.channels_last
            assert _strides_ascend(x) == expected, (shape, strides)
            told.add(expected)
    assert told == {True, False}
