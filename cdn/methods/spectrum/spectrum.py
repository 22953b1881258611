"""The spectrum of the Jacobian at one image, from both ends or as a whole."""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cdn.errors import CDNError
from cdn.files import Results
from cdn.methods.spectrum.denoiser_jacobian import Jacobian, Probing, eigenpairs, matrix, probe
from cdn.methods.spectrum.lanczos import Eigenpairs
from cdn.model.capabilities import is_direct_denoiser
from cdn.model.density import denoise
from cdn.model.modes import evaluating
from cdn.noise_keys import LANCZOS, PROBES

# Images of the float64 check, and the size up to which a dense Jacobian is affordable.
EXACT_IMAGES, DENSE_SIZE = 4, 4096
# What is known of the ends of a spectrum, and of all of it, in the order of reports.
OF_ENDS = ("largest", "smallest", "residual", "products", "cosine")
OF_ALL = ("values", "exact_trace", "hutchinson", "lanczos_error")


def measure_spectrum(
    model: nn.Module,
    y: Tensor,
    sigma: float,
    *,
    dense: bool,
    largest: int,
    smallest: int,
    limit: int,
    seed: int,
    probes: int,
    batch_size: int = 32,
    precision: str = "float32",
    bar: tqdm | None = None,
) -> tuple[Results, Tensor, Eigenpairs | None]:
    """Find the ends of the spectrum at one image y [1, C, H, W] and, if dense, all of it.

    Args:
        model: a model of log-densities, or a :class:`cdn.DirectDenoiser`.
        y, sigma: the noisy image and its noise level.
        dense: whether to make the whole Jacobian.
        largest, smallest, limit: as for :func:`cdn.methods.spectrum.denoiser_jacobian.eigenpairs`.
        seed, probes: of the random probes.
        batch_size, precision, bar: as for :func:`cdn.methods.spectrum.denoiser_jacobian.matrix`.

    Returns:
        (results, D(y), :class:`cdn.methods.spectrum.lanczos.Eigenpairs` or None for a direct denoiser). The results are
        a dict of ``largest`` and ``smallest`` eigenvalues, their largest ``residual``, the ``products`` it took, and
        ``cosine`` of the first eigenvector and y - D(y); ``values``, all eigenvalues (of a direct denoiser: singular
        values), descending, the ``exact_trace`` with Hutchinson's estimate at the same image, [mean, standard error],
        and ``lanczos_error``, the largest difference of the eigenvalues found both ways. None where there is nothing.
    """
    found, pairs = dict.fromkeys(OF_ENDS + OF_ALL), None
    with evaluating(model, precision), torch.no_grad():
        denoised = denoise(model, y, sigma)
        if not is_direct_denoiser(model):
            generator = LANCZOS.generator(seed)
            pairs = eigenpairs(model, y[0], sigma, largest, smallest, generator=generator, limit=limit)
            found |= _of_ends(pairs, largest, y - denoised)
        if dense:
            jacobian = matrix(model, y[0], sigma, batch_size=batch_size, bar=bar)
            probing = probe(Jacobian(model, y, sigma), max(probes, 32), PROBES.key(seed))
            found |= _of_all(jacobian, probing, pairs, largest, smallest)
    return found, denoised, pairs


def _of_ends(pairs: Eigenpairs, largest: int, residual: Tensor) -> Results:
    """Return the figures of eigenpairs at the ends of a spectrum, of which the first are the largest."""
    values = pairs.values.tolist()
    return dict(
        largest=values[:largest],
        smallest=values[largest:],
        products=pairs.products,
        residual=float(pairs.residuals.max()),
        cosine=_cosine(pairs.vectors[0], residual),
    )


def _of_all(jacobian: Tensor, probing: Probing, pairs: Eigenpairs | None, largest: int, smallest: int) -> Results:
    """Return the figures of a whole Jacobian [d, d], beside estimates of its trace and, if any, of its eigenvalues."""
    symmetric = (jacobian + jacobian.T) / 2
    values = torch.linalg.eigvalsh(symmetric).flip(0) if pairs else torch.linalg.svdvals(jacobian)
    ends = torch.cat([values[:largest], values[len(values) - smallest :]])
    return dict(
        values=values.tolist(),
        exact_trace=float(jacobian.trace()),
        hutchinson=[float(probing.trace), float(probing.trace_error)],
        lanczos_error=float((ends - pairs.values).abs().max()) if pairs else None,
    )


def check_numbers(size: int, *, probes: int, largest: int, smallest: int, limit: int) -> None:
    """Raise CDNError unless the numbers of probes and eigenpairs suit images of d = size values."""
    if probes < 2:
        raise CDNError(f"--probes: a standard error takes at least 2, got {probes}")
    wanted, most = largest + smallest, min(size, limit)
    if wanted > most:
        raise CDNError(
            f"--largest and --smallest: expected at most {most} eigenpairs together, the smaller of d = {size} and "
            f"--krylov {limit}, got {wanted}"
        )


def _cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of the angle between two directions, which have no sign."""
    a, b = a.flatten(), b.flatten().to(a)
    return abs(float(a @ b)) / float(a.norm() * b.norm())
