"""Generators about which everything is known: images that are linear in the latent."""

import math

import torch
from torch import nn

from cdn.methods.synthesis import Inference, pixel_distance


class LinearGenerators(nn.Module):
    """``G_c(z) = A_c z + b_c``, with encoders that always say 0.

    Args:
        weight: A [K, D, L].
        bias: b [K, D].
        shape: (C, H, W), D values.
        sigma: deviation of the pixels.
    """

    def __init__(self, weight, bias, shape, sigma):
        super().__init__()
        self.weight, self.bias, self.shape = nn.Parameter(weight), nn.Parameter(bias), shape
        self.sigma = torch.tensor(sigma, dtype=weight.dtype)
        self.classes, self.latents = weight.shape[0], weight.shape[2]
        assert math.prod(shape) == weight.shape[1]

    def decode(self, z):
        return (torch.einsum("kdl,...kl->...kd", self.weight, z) + self.bias).unflatten(-1, self.shape)

    def encode(self, x):
        mean = x.new_zeros(len(x), self.classes, self.latents)
        return mean, mean

    def optimum(self, x):
        """Return the best latents [N, K, L] and ``u^2 = min |x - G(z)|^2 + sigma^2 |z|^2`` [N, K], in closed form."""
        rest = x.flatten(1)[:, None] - self.bias
        gram = self.weight.mT @ self.weight
        inverse = torch.linalg.inv(gram + self.sigma**2 * torch.eye(self.latents, dtype=gram.dtype))
        z = torch.einsum("klm,kdm,nkd->nkl", inverse, self.weight, rest)
        return z, (rest * (rest - torch.einsum("kdl,nkl->nkd", self.weight, z))).sum(-1)


def exact(generators, x):
    """Return what exact inference finds, as :func:`cdn.methods.synthesis.infer` would."""
    z, square = generators.optimum(x)
    images = generators.decode(z)
    return Inference(z, images, pixel_distance(generators.sigma)(x, images), -square / (2 * generators.sigma**2))


def random_generators(classes=3, shape=(2, 2, 3), latents=2, sigma=0.3):
    """Generators of images that often lie in [0, 1]."""
    pixels = math.prod(shape)
    weight = 0.2 * torch.randn(classes, pixels, latents, dtype=torch.float64)
    return LinearGenerators(weight, torch.rand(classes, pixels, dtype=torch.float64), shape, sigma)
