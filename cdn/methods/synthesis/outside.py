"""Reconstruction of images that a generator was not trained on, and detection of such images.

A generator whose latent is large enough reconstructs images that it never saw, as Ju ("Generative models as a robust
alternative for image classification", 2021) found of classifiers that reconstruct: a small error then says nothing. Two
remedies. A density on the latent keeps the search to latents that training images use, so that others come out
wrong; and a model of the density of images, such as a classification-denoising network, judges what the generator was
given, or what it made, without asking the generator.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cdn.evaluation.metrics import psnr
from cdn.files import Results
from cdn.methods.detection.detectors import separation, typicality
from cdn.methods.detection.outlier_sets import synthetic_outliers
from cdn.methods.synthesis.inference import Generators, infer, pixel_distance
from cdn.model.density import log_prob
from cdn_kernels import Noise, sample_noise

# Names of sets of images, of searches for latents, and of the detectors that tell sets apart.
INSIDE, OTHERS, TRAINING = "inside", "other classes", "training"
# The synthetic outliers, of those of the detection of outliers, that are reconstructed.
SYNTHETIC = ("Gaussian noise", "uniform noise", "inverted", "shuffled pixels")
FREE, PRIOR, FITTED = "free", "prior", "fitted"
ERROR, ENERGY, GIVEN, MADE, BOTH = "error", "energy", "log p, image", "log p, made", "error and log p"
# Images by the name of the set; by search and set what was made of them and its energies; ratings by search, set and
# detector.
Sets = dict[str, Tensor]
Made = dict[str, dict[str, tuple[Tensor, Tensor]]]
Ratings = dict[str, dict[str, dict[str, Tensor]]]


class StandardLatents(nn.Module):
    """Generators seen through latents in which those of the training images are standard normal.

    ``z = m_c + F_c u``, with m_c and ``F_c F_c^T`` the mean and covariance of the aggregate posterior of class c, the
    mixture of all ``q(z | x, c)`` over its training images x. The term ``|u|^2 / 2`` of
    :func:`cdn.methods.synthesis.infer` is then the Mahalanobis distance of z from that Gaussian, its negative
    log-density up to a constant: a density fitted to the latents in use, in place of the N(0, I) that the training
    asked for.

    Args:
        generators: :class:`cdn.methods.synthesis.ClassGenerators`, or what has their ``decode``, ``encode``, ``sigma``,
            ``classes`` and ``latents``.
        x: training images [N, C, H, W].
        labels: their classes, int64 [N], each at least once.

    Raises:
        ValueError: a class without images.

    Limitations: one Gaussian per class; modes and bent sheets of latents are beyond it.
    """

    mean: Tensor  # [K, L]
    factor: Tensor  # [K, L, L]

    def __init__(self, generators: Generators, x: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.generators, self.classes, self.latents = generators, generators.classes, generators.latents
        with torch.no_grad():
            means, log_variances = (values.double() for values in generators.encode(x))
        moments = [_moments(means[labels == c, c], log_variances[labels == c, c], c) for c in range(self.classes)]
        self.register_buffer("mean", torch.stack([mean for mean, _ in moments]).to(x))
        self.register_buffer("factor", torch.stack([factor for _, factor in moments]).to(x))

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of the pixels."""
        return self.generators.sigma

    def decode(self, u: Tensor) -> Tensor:
        """Return the images [..., K, C, H, W] of standardized latents [..., K, L]."""
        return self.generators.decode(self.mean + (self.factor @ u[..., None])[..., 0])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log-variance of the standardized latents of images, each [N, K, L]."""
        mean, log_variance = self.generators.encode(x)
        inverse = torch.linalg.inv(self.factor)
        variance = (inverse.square() @ log_variance.exp()[..., None])[..., 0]
        return (inverse @ (mean - self.mean)[..., None])[..., 0], variance.log()


def reconstruct(generators: Generators, strength: float, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Reconstruct images by the latents that explain them best, under a density of the latent of a given weight.

    Minimizes ``|x - G_c(z)|^2 / (2 sigma^2) + strength |z|^2 / 2`` over the latents of every class.

    Args:
        generators: :class:`cdn.methods.synthesis.ClassGenerators` or :class:`StandardLatents`.
        strength: above 0; 1 is the likelihood of the generators, and close to 0 the search is free.
        x: images [N, C, H, W] in [0, 1].
        options: of :func:`cdn.methods.synthesis.infer`: steps, starts, draws, rate, seed, batch_size.

    Returns:
        (reconstructions [N, C, H, W], energies [N]): those of the class with the lowest energy, which is the minimum
        found.

    Raises:
        ValueError: a strength that is not above 0.
    """
    if not strength > 0:
        raise ValueError(f"strength must be a number above 0, got {strength}")
    # Scaled as a whole, the energy has the likelihood and the density of the latent in the form that infer knows.
    found = infer(generators, x, pixel_distance(float(generators.sigma.detach()) * strength**0.5), **options)
    bound, best = found.bound.max(1)
    return found.reconstructions[torch.arange(len(x), device=x.device), best], -strength * bound


class Arbiter:
    """Rate images by how typical their ``log p`` is of reference images, with noise of one level on all of them.

    Neither a lower nor a higher density than that of real images is a good sign:
    :func:`cdn.methods.detection.detectors.typicality`.

    Args:
        model: a model of log-densities.
        reference: images [M, C, H, W], M of 2 or more.
        sigma: noise level.
        noise: a :class:`cdn.Noise` key, for the reference.
        batch_size: images per forward.

    Called with images [N, C, H, W] and a key of their own, returns float64 [N].
    """

    def __init__(self, model: nn.Module, reference: Tensor, sigma: float, noise: Noise, batch_size: int = 256) -> None:
        self.model, self.sigma, self.batch_size = model, sigma, batch_size
        self.reference = self._log_density(reference, noise)

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the ratings [N], float64, of images x [N, C, H, W]."""
        return typicality(self._log_density(x, noise), self.reference)

    def _log_density(self, x: Tensor, noise: Noise) -> Tensor:
        y, _ = sample_noise(x, self.sigma, noise)
        return torch.cat([log_prob(self.model, part).double() for part in y.split(self.batch_size)])


def weakest(ratings: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Return the lowest of several ratings of the same images, each in deviations of its own reference.

    So an image is rated high only if every judge rates it high.

    Args:
        ratings: a list of ratings [N], greater for what looks more like the training.
        reference: a list of those of training images, [M] with M of 2 or more.

    Returns:
        float64 [N].
    """
    standard = [
        (rating.double() - known.double().mean()) / known.double().std()
        for rating, known in zip(ratings, reference, strict=True)
    ]
    return torch.stack(standard).amin(0)


def _moments(means: Tensor, log_variances: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """Return the mean [L] and a factor [L, L] of the covariance of a mixture of normals with equal weights."""
    if not len(means):
        raise ValueError(f"labels: expected images of every class, found none of class {c}")
    mean = means.mean(0)
    centred = means - mean
    covariance = centred.T @ centred / len(means) + log_variances.exp().mean(0).diag()
    return mean, torch.linalg.cholesky(covariance)


def summarize_searches(sets: Sets, made: Made, ratings: Ratings) -> Results:
    """Return what JSON should hold: by search and set, PSNR of reconstructions and AUROC of every detector."""
    results: Results = {}
    for search, reconstructed in made.items():
        results[search] = {}
        for name, images in sets.items():
            found: Results = dict(
                images=len(images),
                psnr=float(psnr(images, reconstructed[name][0]).mean()),
                error=float((images - reconstructed[name][0]).square().flatten(1).sum(1).sqrt().mean()),
            )
            if name not in (INSIDE, TRAINING):
                found["auroc"] = {
                    detector: separation(ratings[search][INSIDE][detector], values).auroc
                    for detector, values in ratings[search][name].items()
                }
            results[search][name] = found
    return dict(searches=results)


def rate_searches(
    model: nn.Module, sets: Sets, made: Made, sigma: float, noise: Noise, batch_size: int = 256
) -> Ratings:
    """Rate images and reconstructions, greater for what looks like the training: ratings [N] by search, set, detector.

    Args:
        model: a model of log-densities, the arbiter.
        sets: images by name, those of the training among them.
        made: by search and set, reconstructions and energies, as :func:`reconstruct` returns them.
        sigma: noise level at which the arbiter rates.
        noise: the first key; each set has one of its own.
        batch_size: images per forward.
    """
    key = lambda number: noise.moved(number)
    arbiter = Arbiter(model, sets[TRAINING], sigma, key(0), batch_size)
    given = {name: arbiter(images, key(number)) for number, (name, images) in enumerate(sets.items(), 1)}
    ratings: Ratings = {}
    for search, found in made.items():
        ratings[search] = {
            name: {
                ERROR: psnr(images, found[name][0]),
                ENERGY: -found[name][1].double(),
                GIVEN: given[name],
                MADE: arbiter(found[name][0], key(number)),
            }
            for number, (name, images) in enumerate(sets.items(), 1)
        }
        known = ratings[search][TRAINING]
        for rated in ratings[search].values():
            rated[BOTH] = weakest([rated[ERROR], rated[GIVEN]], [known[ERROR], known[GIVEN]])
    return ratings


def searches(
    generators: Generators, latents: StandardLatents, free: float, strength: float
) -> dict[str, tuple[Generators, float]]:
    """Return for each of the three searches its generators, and the weight of the density of the latent."""
    return {FREE: (generators, free), PRIOR: (generators, strength), FITTED: (latents, strength)}


def known_sets(training: Tensor, images: Tensor, classes: Tensor, count: int, limit: int, seed: int) -> Sets:
    """Return sets of images by name: of the training, of its classes, of others, and synthetic ones.

    Args:
        training: images [N, C, H, W] that the generator was trained on, of the first classes.
        images, classes: test images of all classes, and these.
        count: of the first classes.
        limit: images of a set, at most.
        seed: of the synthetic ones.
    """
    inside, others = images[classes < count][:limit], images[classes >= count][:limit]
    synthetic = synthetic_outliers(inside, seed)
    some = torch.linspace(0, len(training) - 1, min(len(training), limit)).long()
    return {TRAINING: training[some], INSIDE: inside, OTHERS: others} | {name: synthetic[name] for name in SYNTHETIC}
