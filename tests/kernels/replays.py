"""What tests of replayed steps share."""

import copy

import torch

import cdn
from cdn_kernels import Graphed, Noise, NoiseLevels

CPU = torch.device("cpu")
CALLS = 6  # two that find what there is, the recording, the comparison, and replays


def silent(sentence):
    raise AssertionError(sentence)


def assert_joint_steps_are_replayed(model, x, labels, precision):
    """Check that a replayed joint step, half of the images clean, gives the bits of the step as it is."""
    model = model.to(memory_format=torch.channels_last)
    x = x.to(next(model.parameters()).dtype).contiguous(memory_format=torch.channels_last)
    twin, number, calls = copy.deepcopy(model), torch.tensor(0), []

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
