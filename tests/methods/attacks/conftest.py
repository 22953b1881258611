"""Classifiers about which everything is known."""

import pytest
import torch
from torch import nn


class Linear(nn.Module):
    """Logits that are linear in the image, measured from grey, with an offset of its own for each class."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, y):
        return (y - 0.5).flatten(1) @ self.weight.T + self.bias


@pytest.fixture
def halves():
    """A model of images [2, 4, 3] in float64 with two classes that a plane separates, and a third that never wins."""
    weight = torch.zeros(3, 24, dtype=torch.float64)
    weight[1] = torch.randn(24, dtype=torch.float64)
    return Linear(weight, torch.tensor([0.0, 0.0, -1000.0], dtype=torch.float64))


@pytest.fixture
def sixths():
    """A model of images [2, 4, 3] in float64 with six classes."""
    return Linear(torch.randn(6, 24, dtype=torch.float64), torch.zeros(6, dtype=torch.float64))


@pytest.fixture
def greys():
    """Twenty images, far from black and white."""
    return 0.4 + 0.2 * torch.rand(20, 2, 4, 3, dtype=torch.float64)
