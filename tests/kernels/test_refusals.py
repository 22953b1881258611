"""What cannot work says so in one sentence: drivers, GPUs, devices, sizes, and the range of float16."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import cdn
import cdn_kernels
from cdn_kernels import Noise, NoiseLevels
from cdn_kernels.backends import driver
from cdn_kernels.backends import triton as backend
from cdn_kernels.backends.dispatch import resolve
from cdn_kernels.backends.driver import why_no_gpu

CUDA = torch.device("cuda")
ONES = torch.ones(2, 4, 3, 3)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that pretends to be on a machine."""

    def pretend(toolkit="13.0", version=None, found=False, capability=(9, 0)):
        monkeypatch.setattr(torch.version, "cuda", toolkit)
        monkeypatch.setattr(driver, "driver_version", lambda: version)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda device: SimpleNamespace(major=capability[0], minor=capability[1], name="a GPU"),
        )

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(backend, "INSTALLED", True)
    monkeypatch.setattr(backend, "INTERPRETED", False)
    return pretend


@pytest.mark.parametrize(
    "options, reason",
    [
        (dict(toolkit=None), "was built without CUDA"),
        (dict(), "there is no NVIDIA driver"),
        (dict(version=12080), "the driver supports CUDA 12.8, older than CUDA 13.0 that this torch was built with"),
        (dict(version=13000), "there is no CUDA device"),
        (dict(toolkit="13.2", version=13000), "there is no CUDA device"),
        (dict(version=13000, found=True, capability=(7, 5)), r"compute capability 8.0 or higher, got 7.5 \(a GPU\)"),
    ],
)
def test_a_machine_without_a_gpu_for_this_says_why(machine, options, reason):
    machine(**options)
    with pytest.raises(RuntimeError, match=f"gelu: impl='triton' cannot run: .*{reason}"):
        resolve("gelu", "triton", CUDA, torch.float32)


def test_a_gpu_that_works_is_no_reason(machine):
    machine(version=13000, found=True)
    assert why_no_gpu() is None and backend.can_use_triton(CUDA, torch.float32) is None


def test_the_driver_of_this_machine_can_be_asked():
    version = driver.driver_version()
    assert version is None or version >= 1000


@pytest.mark.parametrize(
    "call",
    [
        lambda far: cdn_kernels.conv2d(ONES, far(4, 4, 3, 3)),
        lambda far: cdn_kernels.conv2d_gelu(ONES, far(4, 4, 3, 3)),
        lambda far: cdn_kernels.gelu_group_norm(ONES, far(4), 2),
        lambda far: cdn_kernels.gelu_group_norm(ONES, torch.ones(4), 2, residual=far(2, 4, 3, 3)),
        lambda far: cdn_kernels.energy([ONES], [far(2, 4, 1, 1)]),
        lambda far: cdn_kernels.sample_noise(ONES, far(2), Noise(0)),
        lambda far: cdn_kernels.denoising_loss(ONES, far(2), Noise(0)),
        lambda far: cdn_kernels.denoising_loss(ONES, 0.5, far(2, 4, 3, 3)),
    ],
)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_tensors_of_another_device_are_refused(call, impl):
    with cdn_kernels.using(impl), pytest.raises(ValueError, match="must be on the device of .*, cpu, got meta"):
        call(lambda *shape: torch.ones(shape, device="meta"))


def network():
    return cdn.gradresnet_small(3, 1, width=8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (network(), torch.rand(2, 1, 6, 6), torch.autocast("cpu", torch.float16)),
        lambda: (network().half(), torch.rand(2, 1, 6, 6).half(), contextlib.nullcontext()),
        lambda: (lambda y: y.square().sum((1, 2, 3)), torch.rand(2, 1, 6, 6).half(), contextlib.nullcontext()),
    ],
    ids=["autocast", "weights", "input"],
)
def test_float16_is_refused_unless_the_loss_is_scaled(make):
    model, y, context = make()
    with context, pytest.raises(ValueError, match="in float16, whose range ends at 65504, .* use bfloat16, or scale"):
        cdn_kernels.score_matching_step(model, y, lambda outputs, score: score.float().square().mean())


def test_a_scaled_loss_is_taken_in_float16():
    y = torch.rand(2, 3, requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    step = cdn_kernels.score_matching_step(
        lambda y: (weight.half() * y.half().square()).sum(1).float(),
        y,
        lambda outputs, score: 8 * score.square().mean(),
        scaled=True,
    )
    assert torch.isfinite(weight.grad).all() and step.loss > 0
    with torch.autocast("cpu", torch.float16), pytest.raises(ValueError, match="float16"):
        cdn.joint_step(network(), torch.rand(2, 1, 6, 6), torch.zeros(2).long(), NoiseLevels(), Noise(0))


class Casting(nn.Module):
    """A network that takes float32 whatever its parameters are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, y):
        return nn.functional.linear(y, self.layer.weight.float(), self.layer.bias.float())


def test_parameters_in_float16_are_found_at_once_or_soon_and_no_longer_than_they_are():
    step = lambda model: cdn_kernels.score_matching_step(
        model, torch.rand(2, 3), lambda outputs, score: outputs.mean() + score.square().mean()
    )
    refused = lambda: pytest.raises(ValueError, match="in float16, whose range ends at 65504")
    with refused():
        step(Casting().half())
    model = Casting()
    step(model)
    model.half()
    with refused():
        for _ in range(50):
            step(model)
    with refused():
        step(model)
    step(model.float())
