"""What a classification-denoising network says about a noisy image: density, score, denoised image, noise level.

Notation: ``f(y)_c = log p(y, c)`` up to a constant, for ``y = x + sigma eps`` with d values per image, images in [0, 1]
and sigma in the same units. All functions work under ``torch.no_grad()`` and ``torch.inference_mode()``, leave the
grad mode and every ``requires_grad`` as they found them, and keep no graph unless ``create_graph=True``.
"""

import torch

from cdn.model.abilities import has_density
from cdn.model.baselines import DirectDenoiser
from cdn_kernels import reference as ops


def log_prob(model, y, *, create_graph=False):
    """Return ``log p(y) = logsumexp_c f(y)_c`` up to a constant that does not depend on y.

    Args:
        model: a model of log-densities, such as :class:`cdn.GradResNet`.
        y: noisy images [B, C, H, W].
        create_graph: keep the graph of the value.

    Returns:
        [B]. Not a calibrated likelihood: score matching says little about the relative weight of distant modes.
    """
    with torch.set_grad_enabled(create_graph):
        return ops.logsumexp(_density(model)(y))


def score(model, y, label=None, *, create_graph=False):
    """Return ``grad_y log p(y)``, or ``grad_y log p(y, c)`` for given labels.

    Args:
        model: a model of log-densities.
        y: noisy images [B, C, H, W].
        label: None, one class, or one class per image [B].
        create_graph: keep the graph, so that the score can be part of a loss.

    Returns:
        The score, the shape of y.

    Raises:
        ValueError: a label out of range, or a model that is no density (a plain classifier or denoiser).
    """
    model = _density(model)
    if label is None:
        return ops.score(lambda y: ops.logsumexp(model(y)), y, create_graph=create_graph)
    classes = model.config["num_classes"]
    label = torch.as_tensor(label, device=y.device)
    if label.is_floating_point() or label.dim() > 1 or (label.dim() == 1 and len(label) != len(y)):
        raise ValueError(
            f"label must be an integer or one integer per image, [{len(y)}], got {label.dtype} {list(label.shape)}"
        )
    if label.numel() and not 0 <= int(label.min()) <= int(label.max()) < classes:
        raise ValueError(f"label must be in [0, {classes - 1}], got {int(label.min())} to {int(label.max())}")
    index = label.expand(len(y))[:, None]
    # The clone is made outside of any inference mode, whose tensors autograd does not take.
    return ops.score(lambda y: model(y).gather(1, index.clone())[:, 0], y, create_graph=create_graph)


def class_scores(model, y, *, create_graph=False):
    """Return ``grad_y log p(y, c)`` for every class c: one forward, and one backward per class.

    Args:
        model: a model of log-densities.
        y: noisy images [B, C, H, W].
        create_graph: keep the graph: of all classes at once.

    Returns:
        The scores, [classes, B, C, H, W].

    Raises:
        ValueError: a model that is no density (a plain classifier or denoiser).
    """
    with torch.inference_mode(False), torch.enable_grad():
        y = ops.differentiable(y, keep=create_graph)
        columns = _density(model)(y).unbind(1)
        return torch.stack(
            [
                torch.autograd.grad(
                    column.sum(), y, retain_graph=create_graph or c < len(columns) - 1, create_graph=create_graph
                )[0]
                for c, column in enumerate(columns)
            ]
        )


def denoise(model, y, sigma, label=None, *, create_graph=False):
    """Return ``D(y) = y + sigma^2 s(y)``, the least-squares denoiser (Tweedie-Miyasawa).

    Args:
        model: a model of log-densities, or a :class:`cdn.DirectDenoiser` (which takes no label and ignores sigma).
        y: noisy images [B, C, H, W].
        sigma: noise level: a float, a 0-d tensor, or one value per image [B].
        label: None, one class or one per image: the class-conditional denoiser ``y + sigma^2 grad_y f(y)_c``.
        create_graph: keep the graph.

    Returns:
        Denoised images, the shape of y, not clipped to [0, 1].
    """
    sigma = ops.expand(ops.per_image(sigma, y, "sigma"), y)
    if isinstance(model, DirectDenoiser):
        if label is not None:
            raise ValueError("denoise: a direct denoiser knows no classes, expected label=None")
        with torch.set_grad_enabled(create_graph):
            return y - model(y)
    return y + (sigma.square() * score(model, y, label, create_graph=create_graph)).to(y.dtype)


def estimate_sigma(model, y):
    """Estimate the noise level of each image from the norm of its score.

    At noise level sigma the mean square of the score is ``(1 - L(sigma)) / sigma^2`` for the optimal denoiser with
    normalized loss L. A trained model carries its own measured curve of mean square against sigma
    (:func:`calibrate`), which is inverted here by monotone interpolation in log-log coordinates. The curve of an
    uncalibrated model is that of L = 0.

    Args:
        model: a model of log-densities.
        y: noisy images [B, C, H, W].

    Returns:
        sigma [B], at best as good as one image can tell; within the calibrated range, extrapolated beyond.
    """
    return sigma_from_score(model, score(model, y))


def sigma_from_score(model, score):
    """Do as :func:`estimate_sigma`, of images whose scores [B, C, H, W] are at hand."""
    mean_square = score.square().flatten(1).mean(1)
    # x = -log mean square grows with sigma; beyond either end sigma keeps its ratio to the uncalibrated estimate.
    # A weak model saturates at small sigma, where the curve turns back: the branch of the larger levels is kept.
    x, knots = -mean_square.log(), -model.calibration_mean_square.log()
    knots = knots.flip(0).cummin(0).values.flip(0)
    values = model.calibration_sigma.log()
    right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    part = ((x - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    inside = torch.lerp(values[right - 1], values[right], part)
    beyond = (x - knots[-1]).clamp(min=0) / 2 + (x - knots[0]).clamp(max=0) / 2
    return (inside + beyond).exp()


def calibrate(model, x, noise, batch_size=256):
    """Measure the curve that :func:`estimate_sigma` inverts, and keep it with the model.

    Args:
        model: a :class:`cdn.GradResNet`; its calibration buffers are overwritten.
        x: clean images [N, C, H, W] in [0, 1]; a few hundred are enough.
        noise: a :class:`cdn.Noise` key.
        batch_size: images per forward and backward.
    """
    for k, sigma in enumerate(model.calibration_sigma):
        total = 0.0
        for part in x.split(batch_size):
            y, _ = ops.sample_noise(part, sigma, noise)
            total += float(ops.in_float64(score(model, y)).square().flatten(1).mean(1).sum())
        model.calibration_mean_square[k] = total / len(x)


def _density(model):
    if not has_density(model):
        raise ValueError(f"a {type(model).__name__} models no density: it has no log-probability and no score")
    return model
