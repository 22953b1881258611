"""Joint steps that are replayed on a CPU: the bits of the step as it is, for every head and precision."""

import copy

import pytest
import torch

import cdn
from cdn_kernels import Graphed, Noise, NoiseLevels
from cdn_kernels.backends import cpu
from tests.kernels.replays import CALLS, CPU, silent

pytestmark = pytest.mark.skipif(bool(cpu.MISSING), reason=str(cpu.MISSING))

MODELS = {
    "log-energy": dict(head="log-energy"),
    "quadratic": dict(head="quadratic"),
    "linear plain": dict(head="linear", norm="plain"),
    "homogeneous": dict(homogeneous=True),
}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_joint_steps_are_replayed_bit_for_bit(options, precision):
    torch.manual_seed(0)
    model = cdn.GradResNet(3, in_channels=3, width=8, blocks=(1, 1), **options)
    model = model.to(memory_format=torch.channels_last, dtype=torch.float64 if precision == torch.float64 else None)
    twin = copy.deepcopy(model)
    x, labels, number = torch.rand(3, 3, 9, 7), torch.tensor([0, 2, 1]), torch.tensor(0)
    x = x.to(next(model.parameters()).dtype).contiguous(memory_format=torch.channels_last)
    calls = []

    def step(model):
        calls.append(model)
        for p in model.parameters():
            p.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            return cdn.joint_step(model, x, labels, NoiseLevels(clean_share=0.5), Noise(1, number))

    graphed = Graphed(lambda: step(twin), CPU, say=silent)
    for at in range(CALLS):
        number.fill_(at)
        (expected, parts), (found, found_parts) = step(model), graphed()
        assert torch.equal(found, expected)
        assert all(torch.equal(found_parts[name], parts[name]) for name in parts)
        for p, q in zip(model.parameters(), twin.parameters()):
            assert torch.equal(p.grad, q.grad)
    assert calls.count(twin) < CALLS
