"""The Jacobian of a denoiser: its products with vectors, its trace, its symmetry, its eigenpairs.

``D(y) = y + sigma^2 grad_y log p(y)`` is the gradient of ``|y|^2/2 + sigma^2 log p(y)``, so its Jacobian
``J = I + sigma^2 H``, H the Hessian of log p, is symmetric. Around y the denoiser keeps the eigenvectors with
eigenvalues near 1 and suppresses those near 0 (Mohan et al., "Robust and interpretable blind image denoising via
bias-free convolutional neural networks", 2020); the trace counts the kept ones, as an effective dimension. For the
exact density ``sigma^2 J = Cov(x | y)``, so ``sigma^2 tr J`` is the squared error to expect, and J has no eigenvalue
below 0. That need not hold for a learned one, nor for one that is blind to sigma: where all of the noise in y grows, it
sees a higher noise level rather than more signal, which gives J an eigenvalue of about 2 along ``y - D(y)``.

All products are with the transposed Jacobian, ``J^T v = grad_y <D(y), v>``: for a density one more backward pass
through the graph of its score. That is second order at most, which every backend of the kernels supports, while the
other product, ``torch.func.jvp`` of the score, needs forward-mode formulas that the fused kernels do not have. For a
symmetric J there is no difference, and for any J the forms ``<u, J v> = <J^T u, v>`` need no other product.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cdn.methods.spectrum.lanczos import Eigenpairs, extreme_eigenpairs
from cdn.model.capabilities import is_direct_denoiser
from cdn.model.density import denoise
from cdn_kernels import Noise, standard_normal
from cdn_kernels.reference import differentiable


class Jacobian:
    """The Jacobians ``dD/dy`` at a batch of images, one per image, as products with vectors.

    The graph of D(y) is made once and kept as long as the object: a product costs one backward pass through it.
    The model's parameters, modes and gradients are left as found; works under ``torch.no_grad()``.

    Args:
        model: a model of log-densities, or a :class:`cdn.DirectDenoiser`, whose Jacobian is not symmetric.
        y: noisy images [B, C, H, W]; their dtype is that of the products.
        sigma: noise level: a float, a 0-d tensor, or one value per image [B].
        label: None, one class or one per image: of the class-conditional denoiser.

    Attributes:
        denoised: D(y), without graph.

    Raises:
        ValueError: what :func:`cdn.denoise` refuses.
    """

    def __init__(self, model: nn.Module, y: Tensor, sigma: float | Tensor, label: int | Tensor | None = None) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            self._y = differentiable(y, keep=False)
            self._denoised = denoise(model, self._y, sigma, label, create_graph=True)
        self.denoised = self._denoised.detach()

    def transposed_product(self, v: Tensor) -> Tensor:
        """Return ``J^T v`` of each image for v [B, C, H, W]; for a density, whose J is symmetric, that is ``J v``."""
        with torch.inference_mode(False):
            v = v.clone() if v.is_inference() else v
            return torch.autograd.grad(self._denoised, self._y, v, retain_graph=True)[0]


class Probing(NamedTuple):
    """What random probes tell about the Jacobians at B images, each figure float64 [B].

    Attributes:
        trace: estimate of ``tr J``, unbiased.
        trace_error: its standard error.
        asymmetry: estimate of ``|J - J^T| / 2|J|`` in Frobenius norms: 0 for a symmetric Jacobian, which rounding
            leaves at a few units in the last place, and 1 for an antisymmetric one.
    """

    trace: Tensor
    trace_error: Tensor
    asymmetry: Tensor


def probe(jacobian: Jacobian, probes: int, noise: Noise) -> Probing:
    """Estimate trace and asymmetry from the forms ``<u, J v>`` of all pairs of some random probes.

    With independent signs as components, ``E <v, J v> = tr J`` (Hutchinson, "A stochastic estimator of the trace of the
    influence matrix", 1990) and ``E <u, A v>^2 = |A|^2`` in the Frobenius norm for u and v independent, which gives
    both norms of the asymmetry: A = J - J^T and A = J.

    Args:
        jacobian: a :class:`Jacobian` at B images.
        probes: number of probes K per image, at least 2: the standard error of the trace is
            ``sqrt(2 sum_{i != j} J_ij^2 / K)`` for a symmetric J.
        noise: a :class:`cdn.Noise` key; probe k is drawn with its offset plus k.

    Returns:
        :class:`Probing`.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes}")
    y = jacobian.denoised
    signs = [_signs(y, noise.moved(k)) for k in range(probes)]
    products = [jacobian.transposed_product(v) for v in signs]
    u, images = (torch.stack(rows, 1).flatten(2).double() for rows in (signs, products))
    forms = images @ u.mT  # [B, K, K]: <J^T u_i, u_j> = <u_i, J u_j>
    squares = forms.diagonal(dim1=1, dim2=2)
    pairs = ~torch.eye(probes, dtype=torch.bool, device=y.device)
    norm = lambda a: a[:, pairs].square().sum(1).sqrt()
    return Probing(squares.mean(1), squares.std(1) / math.sqrt(probes), norm(forms - forms.mT) / (2 * norm(forms)))


def row_product(
    model: nn.Module, y: Tensor, sigma: float | Tensor, label: int | Tensor | None = None, batch_size: int = 32
) -> Callable[[Tensor], Tensor]:
    """Return the map ``V -> V J`` for rows V [k, d], with J the Jacobian at one image.

    Args:
        model, sigma, label: as for :class:`Jacobian`.
        y: one noisy image [C, H, W].
        batch_size: rows that go through the graph at once, which is kept with the map.

    Returns:
        A function from [k, d], any k and dtype, to [k, d] on the device and in the dtype of y.
    """
    jacobian = Jacobian(model, y.expand(batch_size, *y.shape), sigma, label)

    def product(rows: Tensor) -> Tensor:
        parts = []
        for part in rows.to(y).split(batch_size):
            batch = y.new_zeros(batch_size, y.numel())
            batch[: len(part)] = part
            parts.append(jacobian.transposed_product(batch.view(batch_size, *y.shape)).flatten(1)[: len(part)])
        return torch.cat(parts)

    return product


def matrix(
    model: nn.Module,
    y: Tensor,
    sigma: float | Tensor,
    label: int | Tensor | None = None,
    batch_size: int = 32,
    bar: tqdm | None = None,
) -> Tensor:
    """Return the whole Jacobian at one image y [C, H, W]: float64 [d, d] on the CPU, from d products.

    Args:
        model, y, sigma, label, batch_size: as for :func:`row_product`.
        bar: a tqdm bar to advance by the number of rows.
    """
    product = row_product(model, y, sigma, label, batch_size)
    jacobian = torch.empty(y.numel(), y.numel(), dtype=torch.float64)
    for rows in torch.arange(y.numel()).split(batch_size):
        unit = torch.zeros(len(rows), y.numel())
        unit[torch.arange(len(rows)), rows] = 1
        jacobian[rows] = product(unit).to(jacobian)
        if bar is not None:
            bar.update(len(rows))
    return jacobian


def eigenpairs(
    model: nn.Module,
    y: Tensor,
    sigma: float | Tensor,
    largest: int,
    smallest: int,
    *,
    generator: torch.Generator,
    label: int | Tensor | None = None,
    batch_size: int = 8,
    tolerance: float = 1e-3,
    limit: int = 512,
) -> Eigenpairs:
    """Find the largest and the smallest eigenpairs of the Jacobian at one image.

    Args:
        model: a model of log-densities.
        y: one noisy image [C, H, W].
        sigma: its noise level.
        largest, smallest, generator, tolerance, limit: as for :func:`cdn.methods.spectrum.lanczos.extreme_eigenpairs`.
        label: None, or a class: of the class-conditional denoiser.
        batch_size: vectors per backward pass, the block of the Lanczos iteration.

    Returns:
        :class:`cdn.methods.spectrum.lanczos.Eigenpairs`, with vectors [k, C, H, W].

    Raises:
        ValueError: a :class:`cdn.DirectDenoiser`, or a number out of range.
    """
    if is_direct_denoiser(model):
        raise ValueError(
            "eigenpairs: expected a model of log-densities, got a DirectDenoiser: it is the gradient of "
            "nothing, so its Jacobian is not symmetric and has no orthonormal eigenvectors"
        )
    product = row_product(model, y, sigma, label, batch_size)
    pairs = extreme_eigenpairs(
        product, y.numel(), largest, smallest, generator=generator, block=batch_size, tolerance=tolerance, limit=limit
    )
    return pairs._replace(vectors=pairs.vectors.view(-1, *y.shape))


def _signs(y: Tensor, noise: Noise) -> Tensor:
    normal = standard_normal(y.shape, noise, dtype=y.dtype, device=y.device)
    return torch.where(normal < 0, -1.0, 1.0).to(y)
