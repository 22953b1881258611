"""Joint steps that are replayed on a CPU: the bits of the step as it is, for every head and precision."""

import pytest
import torch

import cdn
from cdn_kernels.backends import cpu
from tests.kernels.replays import assert_joint_steps_are_replayed

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
    model = model.to(dtype=torch.float64 if precision == torch.float64 else None)
    assert_joint_steps_are_replayed(model, torch.rand(3, 3, 9, 7), torch.tensor([0, 2, 1]), precision)
