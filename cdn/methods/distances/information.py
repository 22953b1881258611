"""The information-estimation distance of two images, by the density that a denoiser knows."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cdn.methods.quadrature import level_nodes
from cdn.model.density import denoise
from cdn.model.inputs import check_counts, check_floating
from cdn.noise_keys import SIMILARITY
from cdn_kernels import Noise, NoiseLevels
from cdn_kernels import reference as torch_ops
from cdn_kernels.transforms import recorded_if

# The key of the noise where none is given.
KEY = SIMILARITY.key(0)


def similarity(
    model: nn.Module,
    a: Tensor,
    b: Tensor,
    *,
    levels: NoiseLevels = NoiseLevels(),
    nodes: int = 16,
    draws: int = 1,
    noise: Noise = KEY,
    create_graph: bool = False,
) -> Tensor:
    """Return the information-estimation distance of pairs of images, by the denoiser of a model.

    :func:`information_estimation_distance` with ``D(y, sigma) = y + sigma^2 grad_y log p(y)``.

    Args:
        model: a model of log-densities, or a :class:`cdn.DirectDenoiser`.
        a, b, levels, nodes, draws, noise, create_graph: see there. Take the levels that the model was trained on.

    Returns:
        float64 [B], 0 (to rounding) for equal images: a distance, so small means similar.
    """
    return information_estimation_distance(
        lambda y, sigma: denoise(model, y, sigma, create_graph=create_graph),
        a,
        b,
        levels=levels,
        nodes=nodes,
        draws=draws,
        noise=noise,
        create_graph=create_graph,
    )


def information_estimation_distance(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    a: Tensor,
    b: Tensor,
    *,
    levels: NoiseLevels = NoiseLevels(),
    nodes: int = 16,
    draws: int = 1,
    noise: Noise = KEY,
    create_graph: bool = False,
) -> Tensor:
    """Compare the denoising errors of two images, under the same noise, over noise levels.

    After Ohayon et al., "Learning a distance measure from the information-estimation geometry of data" (2025, arXiv
    2510.02514). With ``e_x = D(x + sigma eps, sigma) - x`` and the signal-to-noise ratio ``gamma = 1 / sigma^2``,

        ``d(a, b)^2 = integral of E |e_a - e_b|^2 d gamma = integral of 2 sigma^-2 E |e_a - e_b|^2 d log sigma``,

    the expectation over eps, which a and b share. As ``e_x = sigma eps + sigma^2 s(x + sigma eps)`` for the optimal
    denoiser with score s, this compares scores: ``integral of 2 sigma^2 E |s_a - s_b|^2 d log sigma``.

    For Gaussian images of covariance S, ``D(y) = m + S (S + sigma^2)^-1 (y - m)`` and
    ``e_a - e_b = -(gamma S + 1)^-1 (a - b)`` whatever eps. Since the integral of ``(gamma s + 1)^-2`` up to gamma is
    ``gamma / (1 + gamma s) = 1 / (s + sigma^2)``,

        ``d(a, b)^2 = (a - b)^T [(S + low^2)^-1 - (S + high^2)^-1] (a - b)``,

    the square of the Mahalanobis distance, ``(a - b)^T S^-1 (a - b)``, as low goes to 0 and high to infinity.

    Args:
        denoiser: a function of noisy images [N, C, H, W] and noise levels [N] that returns denoised images.
        a, b: images [B, C, H, W] in [0, 1], of one shape.
        levels: :class:`cdn.NoiseLevels`, of which only low and high count: the ends of the integral.
        nodes: of the Gauss-Legendre rule in log sigma.
        draws: of eps per node, over which the expectation is taken.
        noise: the first key; others are next to it. Equal for all pairs of equal rank, so that the triangle inequality
            holds exactly for images compared at one rank with one key.
        create_graph: keep the graph, of all nodes and draws at once. Equal images have no derivative: nan.

    Returns:
        float64 [B]. In the units of a standard deviation of the density, not of pixels.

    Raises:
        ValueError: shapes that differ, or a number out of range.

    Limitations: what lies outside [low, high] is left out. The original integrates from gamma = 0, here one starts at
    1 / high^2, which leaves out at most ``|a - b|^2 / high^2`` for Gaussian images. The formula is that of the authors'
    published code; the paper itself was not at hand. Its generalization by a function of the integrand is not offered.
    """
    _check_pair(a, b)
    check_counts(nodes=nodes, draws=draws)
    with recorded_if(create_graph):
        pair = torch.cat([torch_ops.recordable(a), torch_ops.recordable(b)])
        total = torch_ops.in_float64(a.new_zeros(len(a)))
        for node, (sigma, weight) in enumerate(level_nodes(levels, nodes)):
            factor = weight * 2 / sigma**2 / draws
            for draw in range(draws):
                key = noise.moved(node * draws + draw)
                eps = sigma * torch_ops.standard_normal(a.shape, key, a.dtype, a.device)
                y = pair + torch.cat([eps, eps])
                error = denoiser(y, y.new_full((len(y),), sigma)) - pair
                error_a, error_b = torch_ops.in_float64(error).chunk(2)
                total = total + factor * (error_a - error_b).square().flatten(1).sum(1)
        return total.sqrt()


def _check_pair(a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless a and b are batches of images of one shape."""
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(
            "similarity: expected two batches of images [B, C, H, W] of one shape, "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
    for images in (a, b):
        check_floating(images, "similarity")
