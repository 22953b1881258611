"""Annealed Langevin dynamics: samples of the noisy densities, at lower and lower noise.

After Song & Ermon, "Generative modeling by estimating gradients of the data distribution", 2019 (arXiv 1907.05600),
algorithm 1.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from cdn.methods.prior.residual import advance, key_of_step
from cdn.model.inputs import check_counts
from cdn_kernels import Noise
from cdn_kernels import reference as torch_ops


def noise_ladder(high: float = 1.0, low: float = 0.01, count: int = 10) -> Tensor:
    """Return noise levels [count] from high down to low, each the same factor below the one before.

    Raises:
        ValueError: not 0 < low < high, or fewer than 2 levels.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"noise_ladder: expected 0 < low < high, got low={low} and high={high}")
    if count < 2:
        raise ValueError(f"noise_ladder: expected at least 2 levels, got {count}")
    return torch.logspace(math.log10(high), math.log10(low), count)


def annealed_langevin(
    residual: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    levels: Tensor | Sequence[float],
    noise: Noise,
    *,
    step: float = 0.1,
    repeats: int = 20,
    progress: bool = False,
) -> Tensor:
    """Walk at each noise level in turn, by ``y + step f(y) + sqrt(2 step) sigma z``.

    This is the update of Song & Ermon, ``y + alpha/2 score + sqrt(alpha) z``, with ``alpha = 2 step sigma^2`` and the
    residual ``f = sigma^2 score``; their epsilon = 2e-5 at the last level 0.01 is step = 0.1, their repeats are 100.

    A blind network is scored by its residual ``D(y) - y`` all the same, which is ``sigma^2 score`` where the image has
    the noise level of the stage. Its own score would not do: it knows no stage, so that ``sigma^2`` times it
    removes, at whatever level the image has, just the variance that is put back, and the level drifts at random.

    Args:
        residual: a callable ``(y, sigma [B]) -> (f, level)`` (:mod:`cdn.methods.prior.residual`).
        start: images [B, C, H, W], at the noise of the first level.
        levels: noise levels, falling, such as :func:`noise_ladder`.
        noise: a :class:`cdn.Noise` key; step t of the walk takes the offset t + 1 above its own.
        step: in (0, 1]; the walk is exact for small steps, and makes the variance of a level up to 1 / (1 - step / 2)
            times too large.
        repeats: steps at each level.
        progress: show a progress bar on stderr.

    Returns:
        Images [B, C, H, W] with noise of the last level, not clipped.

    Raises:
        ValueError: levels that do not fall or are not above 0, or step or repeats out of range.
    """
    levels = torch.as_tensor(levels, dtype=start.dtype).flatten()
    if len(levels) == 0 or not (levels > 0).all() or not (levels.diff() < 0).all():
        raise ValueError(f"levels: expected noise levels above 0, each below the one before, got {levels.tolist()}")
    if not 0 < step <= 1:
        raise ValueError(f"step: expected a number in (0, 1], got {step}")
    check_counts(repeats=repeats)
    y = start
    for t in tqdm(range(len(levels) * repeats), unit="step", leave=False, disable=not progress):
        sigma = torch_ops.per_image(levels[t // repeats], y, "sigma")
        f, _ = residual(y, sigma)
        y = advance(y, f, step, math.sqrt(2 * step) * sigma, key_of_step(noise, t))
    return y
