"""Certification against the plain forward it is made of: samples/s of ``cdn.certify`` and of the network alone."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

import cdn
from benchmarks.harness.agreement import agreement

SIGMA, ALPHA = 0.25, 0.001
CLASS = 1


class Decided(nn.Module):
    """A network that always gives one class, so that all samples are drawn whatever its weights are."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        lead = torch.zeros(model.config["num_classes"])
        lead[CLASS] = 1e9
        self.register_buffer("lead", lead)

    def forward(self, y):
        return self.model(y) + self.lead


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.full), "bf16"])
def test_certification(paired, settings, precision):
    problem = settings.problem(precision=precision)
    # One batch guesses the class and one estimates its probability; fewer than 10 samples certify nothing.
    batch = max(problem.batch, 10)
    model = Decided(problem.model().to(memory_format=torch.channels_last)).to(problem.device).eval()
    x = problem.data()[0][:1]
    noise = SIGMA * torch.randn(batch, *x.shape[1:], device=x.device)
    y = (x + noise).contiguous(memory_format=torch.channels_last)

    def certificate():
        found = cdn.certify(model, x, SIGMA, batch, batch, ALPHA, batch_size=batch, precision=precision)
        assert int(found.draws) == 2 * batch
        return [found.label]

    def forward():
        with torch.no_grad(), problem.autocast():
            return [sum(model(y) for _ in range(2)).argmax(1)[:1].cpu()]

    paired(
        f"{2 * batch} samples: {problem}",
        ("this library", certificate),
        {"plain forward": forward},
        None,
        agreement(certificate, 0),
        operation="certification",
        **asdict(problem) | dict(batch=2 * batch),
    )
