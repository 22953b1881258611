"""Training with the fused kernels against training on the reference, from the same seed."""

from functools import lru_cache

import pytest
import torch

import cdn
from cdn.data import batch_indices, load_dataset
from cdn.training.recipe import make_optimizer
from cdn_kernels import Noise, NoiseLevels
from cdn_kernels.backends import cpu

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


def losses(impl, dtype, steps, layout=torch.contiguous_format):
    torch.manual_seed(0)
    model = cdn.gradresnet_small(10, 1, width=16).to(dtype).to(memory_format=layout)
    optimizer = make_optimizer(model, "adamw", 1e-3, 0.01)
    train = load_dataset("digits").train
    result = []
    for step in range(steps):
        images, labels = train.load(batch_indices(len(train), 32, step, 0))
        x = (images.to(dtype) / 255).contiguous(memory_format=layout)
        optimizer.zero_grad()
        loss, _ = cdn.joint_step(model, x, labels, NoiseLevels(clean_share=0.25), Noise(0, step), impl=impl)
        optimizer.step()
        result.append(loss)
    return torch.stack(result)


expected_losses = lru_cache(lambda dtype, steps: losses("reference", dtype, steps))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype, steps, rtol", [(torch.float64, 50, 1e-9), (torch.float32, 20, 1e-4)])
def test_losses_are_those_of_the_reference(dtype, steps, rtol, layout):
    expected = expected_losses(dtype, steps)
    torch.testing.assert_close(losses("cpu", dtype, steps, layout), expected, rtol=rtol, atol=0)
    assert expected[-1] < expected[0]


def test_steps_are_the_same_again_bit_for_bit():
    assert torch.equal(losses("cpu", torch.float32, 5), losses("cpu", torch.float32, 5))
