"""Stochastic coarse-to-fine ascent of the density that a denoiser implies.

After Kadkhodaie & Simoncelli, "Solving linear inverse problems using the prior implicit in a denoiser", 2021
(arXiv 2007.13640), algorithm 1: partial steps toward the denoised image, with less noise put back than was removed, so
that the noise level falls until nothing is left but an image.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cdn.methods.prior.residual import advance, key_of_step
from cdn.model.inputs import check_counts
from cdn_kernels import Noise
from cdn_kernels import reference as torch_ops


class Ascent(NamedTuple):
    """What :func:`ascend` returns.

    Attributes:
        images: [B, C, H, W] at the last noise level, not clipped.
        levels: noise level of every image before every step, and at last [steps + 1, B].
        finished: bool [B], whether the level has fallen to ``stop``. Where a network denoises badly the level may
            stall or grow without end: a greater ``beta`` helps.
    """

    images: Tensor
    levels: Tensor
    finished: Tensor


def ascend(
    residual: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    noise: Noise,
    *,
    step: float = 0.01,
    beta: float = 0.2,
    stop: float = 0.01,
    limit: int = 2000,
    progress: bool = False,
) -> Ascent:
    """Climb from noise to images, coarse structure first.

    Step t = 0, 1, ... takes the share ``h_t = step (t + 1) / (1 + step t)`` of the residual f and adds noise of
    variance ``((1 - beta h_t)^2 - (1 - h_t)^2) sigma_t^2``, so that the level falls by the factor ``1 - beta h_t``.
    Each image goes on until its own level is at most ``stop``, and then rests.

    Args:
        residual: a callable ``y -> (f, sigma [B])``: :func:`cdn.methods.prior.residual.blind_residual`, or one that
            keeps to measurements (algorithm 2).
        start: images [B, C, H, W] to start from, such as :func:`cdn.methods.prior.residual.noisy_start`.
        noise: a :class:`cdn.Noise` key; step t takes the offset t + 1 above its own, which is left to the start.
        step: h_0 in (0, 1], the share of the first step.
        beta: in (0, 1]: 1 adds no noise, which is quick and blurred; the smaller, the more steps and detail.
        stop: the noise level to end at, in units of images in [0, 1].
        limit: the greatest number of steps.
        progress: show a progress bar on stderr.

    Returns:
        :class:`Ascent`.

    Raises:
        ValueError: step, beta, stop or limit out of range.
    """
    for name, value in (("step", step), ("beta", beta)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}: expected a number in (0, 1], got {value}")
    if not stop > 0:
        raise ValueError(f"stop: expected a noise level above 0, got {stop}")
    check_counts(limit=limit)
    y, levels = start, []
    with tqdm(total=limit, unit="step", leave=False, disable=not progress) as bar:
        for t in range(limit + 1):
            f, sigma = residual(y)
            levels.append(sigma)
            active = sigma > stop
            if t == limit or not active.any():
                break
            h = step * (t + 1) / (1 + step * t)
            gamma = sigma * ((1 - beta * h) ** 2 - (1 - h) ** 2) ** 0.5
            y = torch.where(torch_ops.expand(active, y), advance(y, f, h, gamma, key_of_step(noise, t)), y)
            bar.set_postfix_str(f"sigma {float(sigma.max()):.3f}", refresh=False)
            bar.update()
    return Ascent(y, torch.stack(levels), sigma <= stop)
