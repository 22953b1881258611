"""The search for the latent of each class that reconstructs an image best, by gradient ascent."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cdn.noise_keys import LATENTS

# Values in memory at once while images are compared with the reconstructions of draws.
CHUNK = 1 << 23
# Adam's averages of gradients and of their squares, and what keeps it from dividing by 0.
FADING, SQUARE_FADING, EPS = 0.9, 0.999, 1e-8
# From images x [N, C, H, W] and reconstructions [N, ..., C, H, W] to [N, ...], in nats.
Distance = Callable[[Tensor, Tensor], Tensor]


class Generators(Protocol):
    """What :func:`infer` asks of generators of K classes.

    Attributes:
        classes: K.
        latents: dimensions L of a latent.
    """

    classes: int
    latents: int

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of the pixels, []."""

    def decode(self, z: Tensor, /) -> Tensor:
        """Return the images [..., K, C, H, W] of latents [..., K, L]."""

    def encode(self, x: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the mean and log-variance of the latents of images [N, C, H, W], each [N, K, L]."""


class Inference(NamedTuple):
    """What :func:`infer` found of N images in K classes.

    Attributes:
        latents: [N, K, L].
        reconstructions: [N, K, C, H, W], of these latents.
        distances: [N, K], from each image to its reconstructions, in nats.
        bound: [N, K], ``-distances - |latents|^2 / 2``: log p(x, z | c) up to a constant that all classes share.
    """

    latents: Tensor
    reconstructions: Tensor
    distances: Tensor
    bound: Tensor


def pixel_distance(sigma: float | Tensor) -> Distance:
    """Return the distance that stands for pixels with independent normal errors, ``|x - r|^2 / (2 sigma^2)``.

    Args:
        sigma: standard deviation of the errors, with white as 1.

    Returns:
        A function of images x [N, C, H, W] and reconstructions r [N, ..., C, H, W] that returns [N, ...].
    """

    def distance(x: Tensor, reconstructions: Tensor) -> Tensor:
        return (beside(x, reconstructions) - reconstructions).square().flatten(-3).sum(-1) / (2 * sigma**2)

    return distance


def beside(x: Tensor, r: Tensor) -> Tensor:
    """View x [N, ...] so that it stands beside r [N, ..., ...], which has dimensions in between."""
    return x.reshape(len(x), *[1] * (r.dim() - x.dim()), *x.shape[1:]).expand_as(r)


def infer(
    generators: Generators,
    x: Tensor,
    distance: Distance | None = None,
    *,
    steps: int = 30,
    starts: int = 2,
    draws: int = 64,
    rate: float = 0.1,
    seed: int = 0,
    batch_size: int = 64,
) -> Inference:
    """Find the latents with which each class explains images best.

    Maximizes ``log p(x | z, c) - KL(N(z, s^2 I) || N(0, I))`` over z for every class, which is
    ``-distance - |z|^2 / 2`` up to constants, whatever s: the inference of Schott et al. (2018, arXiv 1805.09190), who
    start Adam from the best of thousands of draws. Here the mean of the encoder is the first start (Schott et al. throw
    the encoders away), far fewer draws are compared, the best few of these are followed, and the rate falls to 0 along
    a line. Of all points visited the best is kept, so that the result is never worse than any start.

    Args:
        generators: :class:`cdn.methods.synthesis.ClassGenerators`, or what has their ``decode``, ``encode``, ``sigma``,
            ``classes`` and ``latents``.
        x: images [N, C, H, W] in [0, 1].
        distance: a function of x [N, C, H, W] and reconstructions [N, ..., C, H, W] that returns [N, ...], which stands
            for ``-log p(x | z, c)`` up to a constant that all classes share: at least 0, in nats, differentiable in
            both. None for :func:`pixel_distance` at the deviation of the generators.
        steps: of Adam from each start; 0 to keep the best start.
        starts: the mean of the encoder, and the ``starts - 1`` best draws for each image and class.
        draws: from N(0, I), the same for all images and classes.
        rate: size of the first step in each latent dimension.
        seed: of the draws.
        batch_size: images treated at once; it changes nothing but rounding.

    Returns:
        :class:`Inference`, without graph. Deterministic, and untouched by autocast; parameters keep their
        ``requires_grad`` and get no gradient.

    Raises:
        ValueError: no start, more starts than draws, or a negative number of steps.

    Limitations: a local optimum. The bound of a class may be higher than found, by an unknown amount.
    """
    if steps < 0:
        raise ValueError(f"steps: expected at least 0, got {steps}")
    if not 1 <= starts <= draws + 1:
        raise ValueError(f"starts: expected the encoder and at most {draws} draws, so 1 to {draws + 1}, got {starts}")
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        distance = distance or pixel_distance(generators.sigma.detach())
        drawn = torch.randn(draws, generators.latents, generator=LATENTS.generator(seed)).to(x)
        drawn = drawn[:, None].expand(-1, generators.classes, -1)
        # Copies, as a tensor made in inference mode cannot be part of a graph.
        found = [
            _infer(generators, part.clone(), distance, drawn, steps=steps, starts=starts, rate=rate)
            for part in x.split(batch_size)
        ]
    return Inference(*map(torch.cat, zip(*found)))


def bound_of(distances: Tensor, latents: Tensor) -> Tensor:
    """Return ``-distances - |latents|^2 / 2`` for distances [...] and latents [..., L]."""
    return -distances - latents.square().sum(-1) / 2


def _infer(
    generators: Generators, x: Tensor, distance: Distance, drawn: Tensor, *, steps: int, starts: int, rate: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = generators.encode(x)[0][:, None]
    if starts > 1:
        z = torch.cat([z, _best_draws(generators, x, distance, drawn, starts - 1)], 1)
    best, best_value = z, torch.full_like(z[..., 0], -torch.inf)
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    for step in range(steps + 1):
        value, gradient = _climb(generators, x, distance, z, last=step == steps)
        better = value > best_value
        best = torch.where(better[..., None], z, best)
        best_value = torch.where(better, value, best_value)
        if gradient is not None:
            first = FADING * first + (1 - FADING) * gradient
            second = SQUARE_FADING * second + (1 - SQUARE_FADING) * gradient.square()
            mean, square = first / (1 - FADING ** (step + 1)), second / (1 - SQUARE_FADING ** (step + 1))
            z = z + rate * (1 - step / steps) * mean / (square.sqrt() + EPS)
    latents = _pick(best, best_value.argmax(1, keepdim=True))[:, 0]
    reconstructions = generators.decode(latents)
    distances = distance(x, reconstructions)
    return latents, reconstructions, distances, bound_of(distances, latents)


def _climb(
    generators: Generators, x: Tensor, distance: Distance, z: Tensor, *, last: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the bound at latents z [N, starts, K, L] and, unless this is the last time, its gradient."""
    with torch.set_grad_enabled(not last):
        z = z.detach().requires_grad_(not last)
        value = bound_of(distance(x, generators.decode(z)), z)
        gradient = None if last else torch.autograd.grad(value.sum(), z)[0]
    return value.detach(), gradient


def _best_draws(generators: Generators, x: Tensor, distance: Distance, drawn: Tensor, count: int) -> Tensor:
    """Return the draws that explain each image best in each class, [N, count, K, L]."""
    chunk = max(CHUNK // max(x.numel() * generators.classes, 1), 1)
    values = torch.cat(
        [
            bound_of(distance(x, generators.decode(part).expand(len(x), -1, -1, -1, -1, -1)), part)
            for part in drawn.split(chunk)
        ],
        1,
    )
    return _pick(drawn.expand(len(x), -1, -1, -1), values.topk(count, dim=1).indices)


def _pick(latents: Tensor, index: Tensor) -> Tensor:
    """Return of latents [N, M, K, L] those that an index [N, count, K] names in the second dimension."""
    return latents.gather(1, index[..., None].expand(-1, -1, -1, latents.shape[-1]))
