"""Images restored from linear measurements: sampling from the prior in a denoiser, held to what was measured.

After Kadkhodaie & Simoncelli, "Solving linear inverse problems using the prior implicit in a denoiser", 2021
(arXiv 2007.13640), algorithm 2. They write it for measurements ``x_c = M^T x`` by orthonormal columns M. ``M M^T`` is
then ``A^+ A`` and ``M x_c`` is ``A^+ m`` of any A whose rows span the same space, so that A need not be orthonormal.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cdn.methods.prior.ascent import ascend
from cdn.methods.prior.operators import Operator
from cdn.methods.prior.residual import Residual, noisy_start, root_mean_square
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
        sigma: deviation of the noise to start from, in units of images in [0, 1].
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
