"""Images drawn from the prior of a model, by either sampler, in batches."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cdn.errors import CDNError
from cdn.methods.prior.annealed import annealed_langevin, noise_ladder
from cdn.methods.prior.ascent import ascend
from cdn.methods.prior.residual import Residual, blind_residual, noisy_start
from cdn_kernels import Noise, NoiseLevels

SAMPLERS = ("ascent", "langevin")
# From a residual, images to start from and a key to images and the number of steps.
Sampler = Callable[[Residual, Tensor, Noise], tuple[Tensor, int]]
# Batches and steps count up from the key of a set, which has to be further from the next than that.
BATCH, SET = 1 << 20, 1 << 40


def ascent(levels: NoiseLevels, *, step: float, beta: float, limit: int, progress: bool) -> Sampler:
    """Return the stochastic ascent as a sampler; arguments as for :func:`cdn.methods.prior.ascent.ascend`."""

    def sample(residual: Residual, start: Tensor, noise: Noise) -> tuple[Tensor, int]:
        y, path, finished = ascend(
            residual, start, noise, step=step, beta=beta, stop=levels.low, limit=limit, progress=progress
        )
        if not finished.all():
            print(f"ascent: {int((~finished).sum())} samples still had noise after {limit} steps")
        return y, len(path)

    return sample


def langevin(levels: NoiseLevels, *, step: float, count: int, repeats: int, progress: bool) -> Sampler:
    """Return annealed Langevin dynamics on a ladder of ``count`` levels as a sampler."""
    ladder = noise_ladder(levels.high, levels.low, count)

    def sample(residual: Residual, start: Tensor, noise: Noise) -> tuple[Tensor, int]:
        y = annealed_langevin(residual, start, ladder, noise, step=step, repeats=repeats, progress=progress)
        return y, count * repeats

    return sample


def draw_samples(
    sampler: Sampler,
    model: nn.Module,
    shape: tuple[int, ...],
    count: int,
    label: Tensor | None,
    noise: Noise,
    *,
    sigma: float,
    guidance: float = 1.0,
    batch_size: int = 100,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, float]:
    """Return samples [count, C, H, W], clipped to [0, 1], and the mean number of steps of a sample.

    Args:
        sampler: what walks.
        model: a model of log-densities, or a :class:`cdn.DirectDenoiser`.
        shape: (C, H, W).
        count: how many samples.
        label: None, or the class of each sample [count].
        noise: the key of the set.
        sigma: noise level to start from.
        guidance: as for :func:`cdn.methods.prior.residual.blind_residual`.
        batch_size: samples at once.
        device: of the model.

    Raises:
        CDNError: the walk diverged, as the network denoises too badly for it.
    """
    parts, steps = [], 0
    for batch, indices in enumerate(torch.arange(count).split(batch_size)):
        key = noise.moved(BATCH * batch)
        residual = blind_residual(model, None if label is None else label[indices], guidance=guidance)
        y, taken = sampler(residual, noisy_start((len(indices), *shape), key, sigma=sigma, device=device), key)
        steps += taken * len(indices)
        parts.append(y.clamp(0, 1))
    images = torch.cat(parts)
    if not images.isfinite().all():
        raise CDNError(
            "the walk diverged, as the network denoises too badly for it: try a greater --beta, or a smaller "
            "--langevin-step"
        )
    return images, steps / count
