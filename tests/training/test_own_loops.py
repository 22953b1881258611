"""The loops of docs/distributed.md: parts of a batch, and DistributedDataParallel, give the gradient of the whole."""

import re
from pathlib import Path

import pytest
import torch

import cdn
import cdn_kernels
from tests.forked import in_processes

TEXT = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
PARTS, PARALLEL, ENERGY = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def run(example, *changes):
    """Run an example, with other text in some places, and return its names."""
    for old, new in changes:
        assert example.count(old) == 1
        example = example.replace(old, new)
    names = {}
    exec(compile(example, "docs/distributed.md", "exec"), names)
    return names


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


def in_parts(size, *changes):
    torch.manual_seed(0)
    return weights(run(PARTS, ("64, 16", f"64, {size}"), *changes)["model"])


def test_parts_of_a_step_train_as_the_whole_does():
    whole = in_parts(64)
    assert distance(in_parts(16), whole) < 1e-3
    assert distance(weights(cdn.gradresnet_small(num_classes=10, in_channels=1)), whole) > 0.1  # others are far away


def data():
    torch.manual_seed(1)
    return torch.rand(256, 1, 8, 8), torch.randint(10, (256,))


def trained(processes, example):
    return weights(run(example)["train"](processes.rank, processes.count, *data()))


@pytest.mark.processes
def test_processes_train_as_one_does():
    there = "from tests.training.test_own_loops import data\nimages, labels = data()"
    alone = in_parts(64, ("images, labels = torch.rand(256, 1, 8, 8), torch.randint(10, (256,))", there))
    found = in_processes(2, trained, PARALLEL)
    assert torch.equal(*found) and distance(found[0], alone) < 1e-3


def test_a_loss_of_ones_own_is_divided_by_the_whole():
    torch.manual_seed(0)
    names = run(ENERGY)
    network, images = names["network"], names["images"]
    found = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    noise = cdn_kernels.Noise(0, 0)
    y, sigma = cdn_kernels.sample_noise(images, cdn_kernels.NoiseLevels(), noise)
    loss = lambda outputs, score: cdn_kernels.denoising_loss(score, sigma, noise)
    cdn_kernels.score_matching_step(lambda y: network(y).flatten(), y, loss)
    for gradient, p in zip(found, (p for p in network.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-3, atol=1e-5)
