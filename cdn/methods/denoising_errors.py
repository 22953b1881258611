"""A classifier by class-conditional denoising errors.

After Li, Prabhudesai, Duggal, Brown & Pathak, "Your diffusion model is secretly a zero-shot classifier" (2023), and
Clark & Jaini, "Text-to-image diffusion models are zero-shot classifiers" (2023): noise is added, taken away given each
class in turn, and the class with the smallest error wins. A classification-denoising network has all its
class-conditional denoisers in one forward, ``D(y, sigma, c) = y + sigma^2 grad_y f(y)_c``, and a backward per class.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import cdn_kernels
from cdn.methods.quadrature import level_nodes
from cdn.model.capabilities import classifies, has_density, kind
from cdn.model.density import class_scores
from cdn.model.inputs import check_counts
from cdn_kernels import Noise, NoiseLevels
from cdn_kernels import reference as torch_ops

# How much the errors at a noise level count.
Weight = Callable[[float], float]


class DenoisingErrorClassifier(nn.Module):
    """Logits [B, classes] from class-conditional denoising errors, integrated over noise levels.

        ``logits_c = -(1 / T) integral of w(sigma) E |D(x + sigma eps, sigma, c) - x|^2 d log sigma``

    The expectation is over eps, which all classes share: their errors have most of their randomness in common.

    **With w = 1 / sigma^2 and T = 1 these are log-likelihoods.** Let ``y = x + sigma eps``, p_c the density of y given
    class c and ``K_c(sigma) = KL(N(x, sigma^2) || p_c) = -(d / 2) log(2 pi e sigma^2) - E log p_c(y)``. Its derivative
    by the signal-to-noise ratio ``gamma = 1 / sigma^2`` is half the pointwise error of the optimal denoiser,
    ``dK_c / dgamma = E |D(y, sigma, c) - x|^2 / 2``: the identity of information and estimation of Guo, Shamai & Verdu
    ("Mutual information and minimum mean-square error in Gaussian channels", 2005), here for one x as in Kong,
    Brekelmans & Ver Steeg ("Information-theoretic diffusion", 2023). As ``dgamma = -2 sigma^-2 d log sigma``,

        ``integral from low to high of sigma^-2 E |D - x|^2 d log sigma = K_c(low) - K_c(high)
        = d log(high / low) - E log p_c(x + low eps) + E log p_c(x + high eps)``,

    for any density and any x. As low goes to 0 the second term becomes ``-log p(x | c)``, and as noise of level high
    drowns what tells the classes apart the third no longer depends on c: up to a constant, the logits are then
    ``log p(x | c)``, and their softmax is the posterior for equal priors. At finite levels they are
    ``E log p_c(x + low eps) - E log p_c(x + high eps)``.

    So were f the log-density of the noisy images of every single level, these logits would be its own, averaged over
    noise of level low, less those at level high. What they say beyond the softmax comes from the network not being so:
    it is blind to the level and learned from scores.

    Args:
        model: a model of log-densities and classes, such as :class:`cdn.GradResNet`.
        levels: :class:`cdn.NoiseLevels`, of which only low and high count. Take those that the model was trained on.
        nodes: of the Gauss-Legendre rule in log sigma.
        draws: of eps per node. They come in mirrored pairs, eps and -eps, which cancels what is odd in eps: between
            Gaussian classes of one covariance, all of the randomness.
        weight: the function w of the noise level; :func:`likelihood_weight` unless given.
        temperature: T, above 0. It changes no decision, only how sure it looks.

    The forward takes images [B, C, H, W] in [0, 1] and a :class:`cdn.Noise` key, which like any key here stands for
    the ``nodes * ceil(draws / 2)`` next to it. It costs ``nodes * draws`` forwards and as many backwards for each
    class. It can be differentiated by the images, through the denoisers too, which adaptive attacks need; it keeps a
    graph where grad mode is on and the input requires grad, and then holds that of all nodes, draws and classes:
    lower the batch size.

    Raises:
        ValueError: a model without classes or density, or a number out of range.

    Limitations: all classes are tried on all noise; the adaptive elimination of classes of Li et al. is not offered.
    The logits are differences of large errors: take float32.
    """

    def __init__(
        self,
        model: nn.Module,
        levels: NoiseLevels = NoiseLevels(),
        *,
        nodes: int = 8,
        draws: int = 2,
        weight: Weight | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not (has_density(model) and classifies(model)):
            raise ValueError(f"model: expected one that denoises given a class, got {kind(model)}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a number above 0, got {temperature}")
        check_counts(nodes=nodes, draws=draws)
        self.model, self.levels, self.nodes, self.draws = model, levels, nodes, draws
        self.weight, self.temperature = weight or likelihood_weight, temperature

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W] without noise."""
        return integrate(self.errors(x, noise), self.levels, self.weight) / -self.temperature

    def errors(self, x: Tensor, noise: Noise) -> Tensor:
        """Return ``|D(x + sigma eps, sigma, c) - x|^2`` by node, draw, image and class.

        Returns:
            float64 [nodes, draws, B, classes], for :func:`integrate`: any weight, and any part of the draws.
        """
        return denoising_errors(
            lambda y, sigma: denoise_by_class(self.model, y, sigma),
            x,
            self.levels,
            noise,
            nodes=self.nodes,
            draws=self.draws,
        )


def likelihood_weight(sigma: float) -> float:
    """Return ``1 / sigma^2``, with which integrated errors are log-likelihoods."""
    return sigma**-2


def integrate(errors: Tensor, levels: NoiseLevels, weight: Weight = likelihood_weight) -> Tensor:
    """Return ``integral of weight(sigma) E |D - x|^2 d log sigma`` from errors [nodes, draws, ...], shape [...]."""
    factors = [node * weight(sigma) for sigma, node in level_nodes(levels, len(errors))]
    return torch.einsum("n,n...->...", errors.new_tensor(factors), errors.mean(1))


def denoising_errors(
    denoisers: Callable[[Tensor, float], Tensor],
    x: Tensor,
    levels: NoiseLevels,
    noise: Noise,
    *,
    nodes: int = 8,
    draws: int = 2,
) -> Tensor:
    """Measure the denoising errors of images for every class, under the same noise.

    Args:
        denoisers: a function of noisy images [B, C, H, W] and a noise level, a float, that returns images denoised
            for every class, [classes, B, C, H, W].
        x: images [B, C, H, W].
        levels, nodes, draws, noise: as for :class:`DenoisingErrorClassifier`.

    Returns:
        The squared errors, float64 [nodes, draws, B, classes].
    """
    rows = []
    for sigma, y in noisy_copies(x, levels, noise, nodes, draws):
        rows.append((denoisers(y, sigma) - x).double().square().flatten(2).sum(2).T)
    return torch.stack(rows).unflatten(0, (nodes, draws))


def noisy_copies(
    x: Tensor, levels: NoiseLevels, noise: Noise, nodes: int, draws: int
) -> Iterator[tuple[float, Tensor]]:
    """Yield (sigma, y) for every node and each of its draws: images with noise, that of odd draws mirrored.

    Arguments as for :func:`denoising_errors`.
    """
    keys = -(-draws // 2)
    for node, (sigma, _) in enumerate(level_nodes(levels, nodes)):
        for draw in range(draws):
            key = noise.moved(node * keys + draw // 2)
            eps = cdn_kernels.standard_normal(x.shape, key, dtype=x.dtype, device=x.device)
            yield sigma, x + (-1) ** draw * sigma * eps


def denoise_by_class(model: nn.Module, y: Tensor, sigma: float | Tensor) -> Tensor:
    """Return ``D(y, sigma, c)`` for every class, [classes, B, C, H, W]: one forward, and one backward per class.

    Args:
        model: a model of log-densities.
        y: noisy images [B, C, H, W]; the graph is kept where grad mode is on and y requires grad.
        sigma: noise level: a float, a 0-d tensor, or one value per image [B].
    """
    level = torch_ops.expand(torch_ops.per_image(sigma, y, "sigma"), y)
    graph = torch.is_grad_enabled() and y.requires_grad
    return y + (level.square() * class_scores(model, y, create_graph=graph)).to(y.dtype)
