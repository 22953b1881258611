"""A classifier by reconstruction beside another one: trained, measured, attacked and bounded."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdn.evaluation.evaluate import accuracy
from cdn.files import Results
from cdn.methods.attacks import distance, sweep
from cdn.methods.attacks.pursuit import Classifier
from cdn.methods.synthesis.classifier import ReconstructionClassifier
from cdn.methods.synthesis.decision_bounds import lower_bounds
from cdn.methods.synthesis.fit import fit
from cdn.methods.synthesis.generators import ClassGenerators, load_generators, save_generators
from cdn.methods.synthesis.inference import Inference
from cdn.methods.synthesis.latent_descent import latent_descent
from cdn.model.finite import decided

# The largest numbers of training images that only calibrate the classifier, and of images in the picture.
HELD_OUT, SHOWN = 200, 5


def prepare(
    generators: ClassGenerators,
    path: Path,
    data: str,
    x: Tensor,
    labels: Tensor,
    *,
    steps: int,
    rate: float,
    seed: int,
    progress: bool,
    search: Mapping[str, Any],
) -> tuple[ReconstructionClassifier, Results]:
    """Return a calibrated classifier, with generators of a file if they fit, and what JSON should hold of it.

    Args:
        generators: untrained, on the device of the images.
        path: where trained ones are kept.
        data: the name of the data set.
        x, labels: training images and their classes, of which the last calibrate.
        steps, rate, seed, progress: of :func:`cdn.methods.synthesis.fit`.
        search: for :func:`cdn.methods.synthesis.infer`.
    """
    held = min(HELD_OUT, max(len(x) // 5, 1))
    settings = dict(data=data, images=len(x) - held, steps=steps, rate=rate, seed=seed)
    old, known = load_generators(path, x.device) if path.exists() else (None, {})
    if old is not None and old.config == generators.config and settings.items() <= known.items():
        print(f"{path}: used again")
        generators, settings = old, known
    else:
        start = time.perf_counter()
        x_fit, labels_fit = x[:-held], labels[:-held]
        bound = fit(generators, x_fit, labels_fit, steps=steps, rate=rate, seed=seed, progress=progress)
        settings |= dict(bound=bound, seconds=round(time.perf_counter() - start, 1))
        save_generators(path, generators, settings)
        print(f"wrote {path}")
    classifier = ReconstructionClassifier(generators, seed=seed, **search).to(x.device)
    loss = classifier.calibrate(x[-held:], labels[-held:])
    sigma = float(generators.sigma.detach())
    return classifier, dict(generators=generators.config | settings, sigma=sigma, calibration_loss=loss)


def compare(
    classifier: ReconstructionClassifier,
    own: Classifier,
    x: Tensor,
    labels: Tensor,
    radii: Mapping[str, Sequence[float]],
    *,
    attacked: int,
    steps: int,
    seed: int,
    batch_size: int,
    progress: bool,
) -> tuple[Results, tuple[Tensor, Tensor, Tensor] | None]:
    """Measure both classifiers, and attack them.

    Args:
        classifier: by reconstruction.
        own: the other, a function of the same images.
        x, labels: test images [N, C, H, W] and their classes [N].
        radii: of the attacks, by norm.
        attacked: attack so many of the images, the first.
        steps, seed, batch_size, progress: of the attacks.

    Returns:
        What JSON should hold, and (x, attacked, labels) of images that the L2 attack has found, or None.
    """
    found = Inference(*map(torch.cat, zip(*map(classifier.infer, x.split(batch_size)))))
    right = decided(found.bound) == labels
    own_clean = accuracy(own, x, labels, batch_size)
    bounds = lower_bounds(found, labels, classifier.generators.sigma.detach())
    x, labels, bounds = (values[:attacked] for values in (x, labels, bounds))
    options: dict[str, Any] = dict(steps=steps, seed=seed, batch_size=batch_size, progress=progress)
    curves = {
        name: {norm: sweep(model, x, labels, norm, at, **options) for norm, at in radii.items()}
        for name, model in (("reconstruction", classifier), ("own", own))
    }
    fooled, images = latent_descent(classifier, x, labels, steps=steps, progress=progress)
    lengths = torch.where(fooled, distance("l2", x, images), torch.inf).double()
    share = lambda lengths: [float((lengths > radius).double().mean()) for radius in radii["l2"]]
    strongest = curves["reconstruction"]["l2"]
    shown = _one_per_class(labels, (strongest.broken_at > 0) & strongest.broken_at.isfinite())[:SHOWN]
    return dict(
        images=len(right),
        attacked=len(x),
        radii=radii,
        clean=float(right.double().mean()),
        own_clean=own_clean,
        robust={name: {norm: curve.robust_accuracy for norm, curve in norms.items()} for name, norms in curves.items()},
        latent_descent=share(lengths),
        latent_descent_median=float(lengths[lengths > 0].median()) if (lengths > 0).any() else None,
        bound_above=share(bounds),
        median_bound=float(bounds.median()),
    ), (x[shown], strongest.images[shown], labels[shown]) if len(shown) else None


def _one_per_class(labels: Tensor, chosen: Tensor) -> Tensor:
    """Return the indices of the first chosen image of each class."""
    return torch.cat([(chosen & (labels == label)).nonzero()[:1, 0] for label in labels.unique()])
