"""Linear inverse problems: images sampled from the prior of a denoiser that agree with measurements.

After Kadkhodaie & Simoncelli, "Solving linear inverse problems using the prior implicit in a denoiser", 2021
(arXiv 2007.13640), algorithm 2. They write it for measurements ``x_c = M^T x`` by orthonormal columns M. ``M M^T`` is
then ``A^+ A`` and ``M x_c`` is ``A^+ m`` of any A whose rows span the same space, so that A need not be orthonormal.
"""

import time
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cdn.evaluation.metrics import psnr, ssim
from cdn.files import Results
from cdn.methods.prior.ascent import ascend
from cdn.methods.prior.operators import Operator
from cdn.methods.prior.residual import Residual, blind_residual, noisy_start, root_mean_square
from cdn.noise_keys import RESTORATION
from cdn_kernels import Noise


class Restoration(NamedTuple):
    """What :func:`restore` returns.

    Attributes:
        images: [B, C, H, W], which agree with the measurements to rounding; not clipped.
        steps: evaluations of the residual.
        finished: bool [B], whether the noise level had fallen to ``stop``.
    """

    images: Tensor
    steps: int
    finished: Tensor


def constrained(residual: Residual, operator: Operator, measured: Tensor) -> Residual:
    """Return the residual toward images that are likely and agree with measurements.

    ``d(y) = (I - A^+ A) f(y) + A^+ (m - A y)``. The noise level is ``|d| / sqrt(C H W)``, as in the paper, but at
    most what the measured part of y shows by itself, ``|A^+ (m - A y)| / sqrt(rank A)``: a network that takes its own
    errors for noise cannot drive the level up, and the ascent ends.

    Args:
        residual: of the prior, as :mod:`cdn.methods.prior.residual` describes.
        operator: A, a :class:`cdn.methods.prior.operators.Operator`.
        measured: m, measurements of B images.
    """
    target = operator.pinv(measured)

    def step(y: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        f, _ = residual(y, sigma)
        error = target - operator.project(y)
        d = f - operator.project(f) + error
        shown = (error.square().flatten(1).sum(1) / operator.size).sqrt()
        return d, torch.minimum(root_mean_square(d), shown)

    return step


def restore(
    residual: Residual,
    operator: Operator,
    measured: Tensor,
    noise: Noise,
    *,
    sigma: float = 1.0,
    step: float = 0.1,
    beta: float = 0.1,
    stop: float = 0.01,
    limit: int = 1000,
    progress: bool = False,
) -> Restoration:
    """Sample images that the prior finds likely among those with the given noiseless measurements.

    The ascent of :func:`cdn.methods.prior.ascent.ascend` along :func:`constrained`, from white noise about the mid-grey
    image that agrees with the measurements, and at last one whole step without noise, after which the agreement is
    exact.

    Args:
        residual: of the prior, as :func:`cdn.methods.prior.residual.blind_residual` makes of a trained model.
        operator: A, a :class:`cdn.methods.prior.operators.Operator`.
        measured: m, measurements of B images, without noise.
        noise: a :class:`cdn.Noise` key. Different keys give different samples; the mean of several is nearer to the
            least-squares estimate, with a higher PSNR and less detail than each.
        sigma: standard deviation of the noise to start from, in units of images in [0, 1].
        step, beta, stop, limit, progress: as for :func:`cdn.methods.prior.ascent.ascend`.

    Returns:
        :class:`Restoration`.

    Raises:
        ValueError: a parameter out of range, or measurements that the operator does not take.

    Limitations: no exact sample of the posterior. Above the last noise levels the prior sees the measured part with
    noise that the measurements do not have; the slower the ascent (small step and beta), the more of that is
    forgotten. Measurements with noise of their own are taken at their word.
    """
    toward = constrained(residual, operator, measured)
    grey = operator.grey(measured)
    start = noisy_start(grey.shape, noise, sigma=sigma, mean=grey, device=grey.device).to(grey.dtype)
    climbed = ascend(toward, start, noise, step=step, beta=beta, stop=stop, limit=limit, progress=progress)
    images = climbed.images + toward(climbed.images)[0]
    return Restoration(images, len(climbed.levels) + 1, climbed.finished)


def restore_several(
    model: nn.Module, operator: Operator, x: Tensor, *, samples: int, seed: int, batch_size: int, bar: tqdm, **walk: Any
) -> tuple[Results, dict[str, Tensor]]:
    """Measure images, restore them several times, and return the figures and the images by name.

    Args:
        model: the prior, a model of log-densities or a :class:`cdn.DirectDenoiser`.
        operator: what measures.
        x: images [N, C, H, W].
        samples: restorations per image.
        seed: of the noise.
        batch_size: images at once.
        bar: a tqdm bar to advance by the number of restorations.
        walk: for :func:`restore`.
    """
    start = time.perf_counter()
    residual, numbers = blind_residual(model), count()
    columns: dict[str, list[Tensor]] = {name: [] for name in ("measured", "pseudo-inverse", "grey", "sample", "mean")}
    errors: list[Tensor] = []
    finished: list[Tensor] = []
    steps = 0
    for part in x.split(batch_size):
        m = operator.forward(part)
        found = []
        for _ in range(samples):
            # Far apart, because every step of a restoration takes an offset of its own.
            restored = restore(residual, operator, m, RESTORATION.key(seed, next(numbers) << 32), **walk)
            found.append(restored.images)
            steps, finished = max(steps, restored.steps), [*finished, restored.finished]
            bar.update()
        mean = torch.stack(found).mean(0)
        errors.append((operator.forward(mean) - m).abs().max())
        for name, column in (
            ("measured", operator.picture(m)),
            ("pseudo-inverse", operator.pinv(m)),
            ("grey", operator.grey(m)),
            ("sample", found[0]),
            ("mean", mean),
        ):
            columns[name].append(column)
    images = {name: torch.cat(parts) for name, parts in columns.items()}
    result: Results = dict(
        measured=operator.size / x[0].numel(),
        steps=steps,
        finished=float(torch.cat(finished).double().mean()),
        largest_error=float(torch.stack(errors).max()),
        seconds=round(time.perf_counter() - start, 1),
    )
    for name, metric in (("psnr", psnr), ("ssim", ssim)):
        result[name] = {kind: float(metric(images[kind], x).mean()) for kind in images if kind != "measured"}
    return result, images
