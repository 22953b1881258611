"""The effective dimension of noisy images to a denoiser: the trace of its Jacobian, and the loss that it predicts."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cdn.evaluation.metrics import mean_and_error
from cdn.files import Results
from cdn.methods.spectrum.denoiser_jacobian import Jacobian, probe
from cdn.model.modes import evaluating
from cdn.noise_keys import EVALUATION, PROBES
from cdn_kernels import Noise, standard_normal


class Dimension(NamedTuple):
    """Figures of N images at one noise level, each float64 [N] on the CPU.

    Attributes:
        trace, trace_error, asymmetry: of the Jacobian J, as :class:`cdn.methods.spectrum.denoiser_jacobian.Probing` has
        them. loss: the normalized denoising loss, the mean of ``(D(y) - x)^2 / sigma^2``. For the exact density
            its expectation is that of ``tr J / d``.
        stein: Stein's unbiased estimate of the loss, which needs no clean image: the mean of
            ``(D(y) - y)^2 / sigma^2`` less 1 plus ``2 tr J / d`` (Stein, "Estimation of the mean of a multivariate
            normal distribution", 1981). It differs from the loss of any denoiser by chance only, if the trace is right.
    """

    trace: Tensor
    trace_error: Tensor
    asymmetry: Tensor
    loss: Tensor
    stein: Tensor


def effective_dimension(
    model: nn.Module,
    x: Tensor,
    sigma: float,
    noise: Noise,
    probes: int,
    probe_noise: Noise,
    *,
    batch_size: int = 32,
    precision: str = "float32",
    bar: tqdm | None = None,
) -> Dimension:
    """Estimate the trace of the Jacobian of a denoiser at noisy images, and measure the loss there.

    Args:
        model: a model of log-densities or a :class:`cdn.DirectDenoiser`.
        x: clean images [N, C, H, W].
        sigma: noise level, a float in the units of the images.
        noise: a :class:`cdn.Noise` key, of the noise of all images.
        probes: random probes per image, at least 2.
        probe_noise: a :class:`cdn.Noise` key of the probes; those of batch k start at its offset plus k times probes.
        batch_size: images per backward pass.
        precision: "float32", or "bf16" for a forward under autocast.
        bar: a tqdm bar to advance by the number of products.

    Returns:
        :class:`Dimension`.
    """
    eps = standard_normal(x.shape, noise, dtype=x.dtype, device=x.device)
    parts = []
    with evaluating(model, precision):
        for k, (clean, unit) in enumerate(zip(x.split(batch_size), eps.split(batch_size))):
            y = clean + sigma * unit
            jacobian = Jacobian(model, y, sigma)
            probing = probe(jacobian, probes, probe_noise.moved(k * probes))
            loss, residual = (
                ((jacobian.denoised - image).double() / sigma).square().flatten(1).mean(1) for image in (clean, y)
            )
            stein = residual - 1 + 2 * probing.trace / y[0].numel()
            parts.append([values.cpu() for values in (*probing, loss, stein)])
            if bar is not None:
                bar.update(probes * len(clean))
    return Dimension(*(torch.cat(values) for values in zip(*parts)))


def summarize_dimension(
    model: nn.Module, x: Tensor, sigma: float, *, seed: int, probes: int, bar: tqdm | None = None, **how: Any
) -> Results:
    """Return means over images of what :func:`cdn.methods.spectrum.dimension.effective_dimension` found.

    A dict of [mean, standard error over images]: ``trace``, ``loss``, ``loss_minus_stein`` and ``loss_minus_trace`` (of
    the trace per dimension); ``probe_error``, the mean standard error of one image's trace; and the mean ``asymmetry``.
    """
    found = effective_dimension(model, x, sigma, EVALUATION.key(seed), probes, PROBES.key(seed), bar=bar, **how)
    return dict(
        trace=mean_and_error(found.trace),
        loss=mean_and_error(found.loss),
        loss_minus_stein=mean_and_error(found.loss - found.stein),
        loss_minus_trace=mean_and_error(found.loss - found.trace / x[0].numel()),
        probe_error=float(found.trace_error.mean()),
        asymmetry=float(found.asymmetry.mean()),
    )


def asymmetry_in_float64(model: nn.Module, x: Tensor, sigma: float, *, seed: int, probes: int) -> float:
    """Return the mean asymmetry at a few images x [N, C, H, W] in double precision."""
    twin, x = copy.deepcopy(model).double(), x.double()
    noise = standard_normal(x.shape, EVALUATION.key(seed), dtype=x.dtype, device=x.device)
    with evaluating(twin, "float32"):
        jacobian = Jacobian(twin, x + sigma * noise, sigma)
        return float(probe(jacobian, probes, PROBES.key(seed)).asymmetry.mean())
