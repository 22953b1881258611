"""Every peer of the benchmarks computes the loss and the gradient of the joint step, or says why it cannot."""

import functools
import importlib.util
from dataclasses import replace

import pytest
import torch

from benchmarks.peers import PEERS
from benchmarks.peers.compiled import CompiledScore
from benchmarks.peers.forward_over_reverse import ForwardOverReverse
from benchmarks.peers.plain_compile import CompiledClassifier
from benchmarks.steps import Problem, Recorded, Score, Step
from cdn_kernels.graphs import Graphed

# In half precision of so narrow a network, fewer pixels would leave little but rounding.
TINY = {
    "float32": Problem(width=8, batch=2, side=8, precision="float32"),
    "bf16": Problem(width=8, batch=4, side=16, precision="bf16"),
}
# For what takes minutes to compile: every kind of layer, once.
SHALLOW = 6
# Of the loss: rounding, in the sum of some thousand values of half precision.
LOSS = {"float32": 1e-5, "bf16": 5e-3}
EAGER = ["forward over reverse", "finite difference"]
COMPILED = ["compiled plain step", "compiled", "unrolled", "finite difference, compiled"]
HAS_JAX = importlib.util.find_spec("jax") is not None


def tiny(precision, yardstick, depth=18):
    return replace(TINY[precision], yardstick=yardstick, depth=depth)


def gradient(step):
    """Run a step in float64 and return its gradient."""
    step.model.double()
    step.x = step.x.double()
    loss = step()
    return loss, torch.cat([p.grad.flatten() for p in step.model.parameters()])


def error(a, b):
    return float((a - b).norm() / b.norm())


@functools.cache
def expected(problem):
    """Return (loss, gradient, how far eager double backward is from that), by float64."""
    loss, exact = gradient(Step(replace(problem, precision="float32")))
    eager = Step(problem)
    eager()
    return loss, exact.float(), error(eager.result(), exact.float())


def check(name, problem):
    """Compare with float64: a peer may err twice as much as eager double backward, or as it says."""
    loss, exact, eager = expected(problem)
    peer = PEERS[name](problem)
    assert peer() == pytest.approx(loss, rel=LOSS[problem.precision])
    assert error(peer.result(), exact) <= getattr(peer, "tolerance", 2 * eager + 1e-5)
    first = peer.result()
    peer()
    assert error(peer.result(), first) <= 1e-6  # gradients replace those of the step before


both = pytest.mark.parametrize("yardstick", [True, False], ids=["yardstick", "default"])


@both
@pytest.mark.parametrize("precision", TINY)
@pytest.mark.parametrize("name", EAGER)
def test_eager_peers(name, precision, yardstick):
    check(name, tiny(precision, yardstick))


@both
def test_forward_over_reverse_is_exact(yardstick):
    problem = tiny("float32", yardstick)
    loss, exact = gradient(Step(problem))
    value, found = gradient(ForwardOverReverse(problem))
    assert value == pytest.approx(loss, rel=1e-12)
    assert error(found, exact) <= 1e-10


@pytest.mark.slow
@pytest.mark.skipif(not HAS_JAX, reason="JAX is not installed (extra peers)")
@both
@pytest.mark.parametrize("precision", TINY)
def test_jax(precision, yardstick):
    check("JAX", tiny(precision, yardstick))


@pytest.mark.skipif(HAS_JAX, reason="JAX is installed")
def test_jax_says_how_to_install_it():
    with pytest.raises(RuntimeError, match="pip install"):
        PEERS["JAX"](tiny("float32", True))


@pytest.mark.slow
@pytest.mark.parametrize("precision, yardstick", [("float32", True), ("bf16", False)])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_peers(name, precision, yardstick):
    check(name, tiny(precision, yardstick, SHALLOW))


@pytest.mark.slow
def test_pytorch_refuses_double_backward_through_a_compiled_network():
    with pytest.raises(RuntimeError, match="double backward"):
        PEERS["compiled network"](tiny("float32", True, SHALLOW))


@pytest.mark.slow
@pytest.mark.parametrize(
    "peer, eager", [(CompiledScore, Score), (CompiledClassifier, lambda problem: Step(problem, denoising=0.0))]
)
def test_compiled_parts_of_a_step(peer, eager):
    problem = tiny("float32", False, SHALLOW)
    peer, eager = peer(problem), eager(problem)
    assert peer() == pytest.approx(eager(), rel=1e-4)
    assert error(peer.result(), eager.result()) <= 1e-4


@pytest.mark.parametrize("build", [Step, Score])
def test_a_recorded_case_does_what_the_case_does(monkeypatch, build):
    # Where there is no GPU to record for, the case itself takes the place of its recording.
    monkeypatch.setitem(Graphed.__init__.__kwdefaults__, "record", lambda function, stream: function)
    recorded, plain = (make(TINY["float32"], "reference") for make in (lambda *a: Recorded(build, *a), build))
    assert recorded() == plain() and recorded.recorded_bytes is not None
    assert torch.equal(recorded.result(), plain.result())


def test_every_peer_says_what_it_is():
    assert all(peer.about for peer in PEERS.values())
    assert set(PEERS) == {"compiled network", "JAX", *EAGER, *COMPILED}
