"""Gaussian priors whose noisy densities are known, to hold samplers against."""

import math

import torch
from torch import nn

from cdn_kernels import reference as ops


class KnownLevel:
    """The residual of a Gaussian prior at a noise level that is told.

    Args:
        mean: [C, H, W].
        variance: of each value, [C, H, W]; the values are independent.
    """

    def __init__(self, mean, variance):
        self.mean, self.variance = mean, variance

    def __call__(self, y, sigma):
        square = ops.expand(sigma, y).square()
        return square * (self.mean - y) / (self.variance + square), sigma


class BlindGaussian(nn.Module):
    """A blind model of Gaussian classes: log p(y, c) of noisy images whose level is log-uniform over a grid.

    Args:
        means: of the classes [K, C, H, W].
        variance: of each value [C, H, W]; 0 for those that are the same in all images.
    """

    def __init__(self, means, variance):
        super().__init__()
        self.config = dict(num_classes=len(means))
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.means, self.variance = means.flatten(1), variance.flatten()
        self.grid = torch.logspace(-3, 0.5, 200, dtype=means.dtype)
        self.calibration_sigma = torch.logspace(-2.5, 0.3, 20, dtype=means.dtype)
        self.calibration_mean_square = torch.empty(20, dtype=means.dtype)

    def forward(self, y):
        total = self.variance + self.grid[:, None].square()  # [levels, d]
        difference = (y.flatten(1)[:, None] - self.means).square()  # [B, K, d]
        energies = 0.5 * (difference @ (1 / total).T + total.log().sum(1) + total.shape[1] * math.log(2 * math.pi))
        return (-energies).logsumexp(2)
