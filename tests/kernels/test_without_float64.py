"""Devices that have no float64, as Apple's GPUs: the reference path makes no such number there."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cdn
from cdn_kernels import reference
from cdn_kernels.backends import dispatch

META = torch.device("meta")  # a device without values stands in: what is copied from it becomes zeros


class WithoutFloat64(TorchDispatchMode):
    """Refuse float64 on the device, as it would."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") != META:
            if kwargs.get("device") is not None:
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0
        result = function(*args, **kwargs)
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.is_meta and value.dtype == torch.float64:
                raise TypeError(f"{function} makes float64 on a device without it")
        return result


@pytest.fixture
def device(monkeypatch):
    # Which know no such device.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)
    monkeypatch.setattr(reference, "WITHOUT_FLOAT64", {"meta"})
    return META


def steps(device):
    """Yield what the API offers on a device, one by one, to be run."""
    model = cdn.gradresnet_small(num_classes=3, in_channels=1, width=8).to(device)
    x, labels = torch.rand(4, 1, 8, 8, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    key = cdn.Noise(1, 2)
    for law in ("log-uniform", "uniform", "fixed"):
        yield lambda law=law: cdn.joint_step(model, x, labels, cdn.NoiseLevels(law=law, low=0.1, high=0.1), key)
    yield lambda: cdn.joint_loss(model, x, labels, 0.2, key)[0].backward()
    yield lambda: cdn.score(model, x)
    yield lambda: cdn.score(model, x, label=1)
    yield lambda: cdn.log_prob(model, x)
    yield lambda: cdn.denoise(model, x, sigma=0.2)
    yield lambda: cdn.estimate_sigma(model, x)
    yield lambda: cdn.similarity(model, x, x.flip(3), nodes=2)
    yield lambda: cdn.calibrate(model, x, key)


def test_the_reference_path_makes_none(device):
    with WithoutFloat64():
        results = [step() for step in steps(device)]
    assert results[4].device == device and results[9].dtype == torch.float64 and results[9].device.type == "cpu"


def test_levels_are_drawn_on_the_processor_and_are_the_same(device, monkeypatch):
    drawn = reference.sample_sigma(5, cdn.Noise(3), cdn.NoiseLevels())
    with WithoutFloat64():
        there = reference.sample_sigma(5, cdn.Noise(3), cdn.NoiseLevels(), device=device)
    assert there.device == device and there.dtype == drawn.dtype
    monkeypatch.setattr(reference, "WITHOUT_FLOAT64", {"cpu"})
    assert torch.equal(reference.sample_sigma(5, cdn.Noise(3), cdn.NoiseLevels()), drawn)


def test_the_stand_in_refuses_what_would_be_made(device, monkeypatch):
    """Without what is done about it, the draws of levels and the sums in float64 fail."""
    monkeypatch.setattr(reference, "WITHOUT_FLOAT64", set())
    refused = []
    with WithoutFloat64():
        for number, step in enumerate(steps(device)):
            try:
                step()
            except TypeError:
                refused.append(number)
    assert refused == [0, 1, 2, 9, 10]


def test_apples_gpus_run_the_reference():
    assert "mps" in reference.WITHOUT_FLOAT64
    assert dispatch.resolve("gelu", "auto", torch.device("mps"), torch.float32) == "reference"
    with pytest.raises(RuntimeError, match="no kernels for devices of type mps"):
        dispatch.fused_backends(torch.device("mps"))
