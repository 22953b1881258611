"""Networks of all kinds, as others write them: their steps are exact, and leave all else as plain PyTorch leaves it."""

import pytest
import torch

from benchmarks.networks import NETWORKS
from cdn_kernels.ops import torch_functions

pytestmark = pytest.mark.filterwarnings("ignore:score_matching_step runs")
LARGEST_ERROR = 1e-12  # of the norm of the gradient, in float64


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def left_by(network, way):
    """Return what a step leaves: gradients by name, buffers by name, and the state of the generator."""
    case = network.case("small")
    frozen = [name for name, _ in case.network.named_parameters()][1::3]
    for name in frozen:
        case.network.get_parameter(name).requires_grad_(False)
    torch.manual_seed(1)
    for _ in range(2):  # gradients accumulate, and averages of batches move on
        getattr(case, way)()
    gradients = {name: p.grad for name, p in case.network.named_parameters() if p.grad is not None}
    assert gradients and not gradients.keys() & set(frozen)
    return gradients, dict(case.network.named_buffers()), torch.get_rng_state()


def norm(tensors):
    return sum(float(t.double().square().sum()) for t in tensors) ** 0.5


@pytest.mark.parametrize("convolutions", ["measured", "all"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.networks if NETWORKS[n].package else ()) for n in NETWORKS]
)
def test_steps_equal_double_backward(monkeypatch, name, convolutions):
    if NETWORKS[name].missing:
        pytest.skip(NETWORKS[name].missing)
    monkeypatch.setattr(torch_functions, "CHOICE", convolutions)
    mine, buffers, generator = left_by(NETWORKS[name], "library")
    exact, their_buffers, their_generator = left_by(NETWORKS[name], "eager")
    assert mine.keys() == exact.keys()
    error = norm(mine[n] - exact[n] for n in exact) / norm(exact.values())
    assert error <= LARGEST_ERROR
    for n, buffer in their_buffers.items():
        torch.testing.assert_close(buffers[n], buffer, rtol=1e-12, atol=1e-12)
    assert torch.equal(generator, their_generator)
