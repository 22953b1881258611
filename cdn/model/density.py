"""Functions of a classification-denoising network: density, score, denoised image, and noise level.

Notation: ``f(y)_c = log p(y, c)`` up to a constant, for ``y = x + sigma eps`` with d values per image, images in [0, 1]
and sigma in the same units. All functions work under ``torch.no_grad()`` and ``torch.inference_mode()``, leave the
grad mode and every ``requires_grad`` as they found them. With ``create_graph=True`` results can be differentiated by
images, noise levels and parameters; without it they never require grad. Under torch.func transforms (grad, vjp, jvp,
jacrev, jacfwd, hessian, vmap) and forward-mode differentiation, they are differentiated whatever ``create_graph``.
"""

from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from cdn.model.capabilities import Opened, has_density, is_direct_denoiser, kind, unwrapped
from cdn.model.finite import require_finite
from cdn.model.inputs import check_floating
from cdn_kernels import Noise
from cdn_kernels import reference as torch_ops
from cdn_kernels.floors import square_floor
from cdn_kernels.noise import Sigma
from cdn_kernels.transforms import can_be_read, recorded_if, transformed

# A class: one for all images, or one per image [B].
Label = int | Tensor
# Noise levels from here on are compared with the images: noise of this level would hide any image in [0, 1].
SUSPICIOUS_LEVEL = 5.0


class LogDensity(Protocol):
    """A model of log-densities: its logits, its options (for the number of classes), its curve of noise levels."""

    config: dict[str, Any]
    calibration_sigma: Tensor
    calibration_mean_square: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        """Return logits [B, C]."""


def log_prob(model: nn.Module, y: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return ``log p(y) = logsumexp_c f(y)_c`` up to a constant that does not depend on y.

    Args:
        model: a model of log-densities, such as :class:`cdn.GradResNet`.
        y: noisy images [B, C, H, W].
        create_graph: keep the graph of the value.

    Returns:
        [B]. Not a calibrated likelihood: score matching says little about the relative weight of distant modes.
    """
    density = _density(model, y)
    with recorded_if(create_graph):
        return torch_ops.logsumexp(density(torch_ops.recordable(y)))


def score(model: nn.Module, y: Tensor, label: Label | None = None, *, create_graph: bool = False) -> Tensor:
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
    density = _density(model, y)
    if label is None:
        return torch_ops.score(lambda y: torch_ops.logsumexp(density(y)), y, create_graph=create_graph)
    classes = density.config["num_classes"]
    label = torch.as_tensor(label, device=y.device)
    if label.is_floating_point() or label.dim() > 1 or (label.dim() == 1 and len(label) != len(y)):
        raise ValueError(
            f"label must be an integer or one integer per image, [{len(y)}], got {label.dtype} {list(label.shape)}"
        )
    if label.numel() and can_be_read(label) and not 0 <= int(label.min()) <= int(label.max()) < classes:
        raise ValueError(f"label must be in [0, {classes - 1}], got {int(label.min())} to {int(label.max())}")
    index = label.expand(len(y))[:, None]
    # The clone is made outside of any inference mode, whose tensors autograd does not take.
    return torch_ops.score(lambda y: density(y).gather(1, index.clone())[:, 0], y, create_graph=create_graph)


def class_scores(model: nn.Module, y: Tensor, *, create_graph: bool = False) -> Tensor:
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
    density = _density(model, y)
    with torch.inference_mode(False), torch.enable_grad():
        if transformed():
            logits, pull = cast("tuple[Tensor, torch_ops.Pullback]", torch.func.vjp(density, y))
            return torch.stack([pull(direction)[0] for direction in _one_class_each(logits)])
        y = torch_ops.differentiable(y, keep=create_graph)
        columns = density(y).unbind(1)
        return torch.stack(
            [
                torch.autograd.grad(
                    column.sum(), y, retain_graph=create_graph or c < len(columns) - 1, create_graph=create_graph
                )[0]
                for c, column in enumerate(columns)
            ]
        )


def denoise(
    model: nn.Module, y: Tensor, sigma: Sigma, label: Label | None = None, *, create_graph: bool = False
) -> Tensor:
    """Return ``D(y) = y + sigma^2 s(y)``, the least-squares denoiser (Tweedie-Miyasawa).

    Args:
        model: a model of log-densities, or a :class:`cdn.DirectDenoiser` (which takes no label and ignores sigma).
        y: noisy images [B, C, H, W].
        sigma: noise level: a float, a 0-d tensor, or one value per image [B].
        label: None, one class or one per image: the class-conditional denoiser ``y + sigma^2 grad_y f(y)_c``.
        create_graph: keep the graph.

    Returns:
        Denoised images, the shape of y, not clipped to [0, 1].

    Raises:
        ValueError: what :func:`score` refuses; a noise level below 0, or one of 5 or more of images without such noise,
            which is a number of grey levels.
    """
    if is_direct_denoiser(model) and label is not None:
        raise ValueError("denoise: a direct denoiser knows no classes, expected label=None")
    check_floating(y, "denoise")
    with recorded_if(create_graph):
        y = torch_ops.recordable(y)
        level = torch_ops.recordable(torch_ops.per_image(sigma, y, "sigma"))
        _check_level(level, y)
        level = torch_ops.expand(level, y)
        if is_direct_denoiser(model):
            return y - model(y)
        return y + (level.square() * score(model, y, label, create_graph=create_graph)).to(y.dtype)


def estimate_sigma(model: nn.Module, y: Tensor, *, create_graph: bool = False) -> Tensor:
    """Estimate the noise level of each image from the norm of its score.

    At noise level sigma the mean square of the score is ``(1 - L(sigma)) / sigma^2`` for the optimal denoiser with
    normalized loss L. A trained model carries its own measured curve of mean square against sigma
    (:func:`calibrate`), which is inverted here by monotone interpolation in log-log coordinates. The curve of an
    uncalibrated model is that of L = 0.

    Args:
        model: a model of log-densities.
        y: noisy images [B, C, H, W].
        create_graph: keep the graph.

    Returns:
        sigma [B], at best as good as one image can tell; within the calibrated range, extrapolated beyond. 0, with
        derivatives 0, for an image whose score is 0 (the root of its mean square is below 8e-9 in float32), as that of
        an image that equals the mean of a :class:`cdn.GradResNet` is: it shows no noise.
    """
    with recorded_if(create_graph):
        return sigma_from_score(model, score(model, y, create_graph=create_graph))


def sigma_from_score(model: nn.Module, score: Tensor) -> Tensor:
    """Return what :func:`estimate_sigma` does, [B], from scores [B, C, H, W] that were computed before."""
    density = _density(model)
    # Squares of half-precision scores would overflow.
    mean_square = score.to(torch_ops.compute_dtype(score.dtype)).square().flatten(1).mean(1)
    floor = square_floor(mean_square.dtype)
    blank = mean_square.detach() <= floor
    # x = -log mean square grows with sigma; beyond either end sigma keeps its ratio to the uncalibrated estimate.
    # A weak model saturates at small sigma, where the curve turns back: the branch of the larger levels is kept.
    x, knots = (
        -torch.where(blank, 1.0, mean_square).log(),
        -density.calibration_mean_square.to(mean_square.dtype).clamp(min=floor).log(),
    )
    knots = knots.flip(0).cummin(0).values.flip(0)
    values = density.calibration_sigma.to(mean_square.dtype).log()
    right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    part = ((x - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    inside = torch.lerp(values[right - 1], values[right], part)
    beyond = (x - knots[-1]).clamp(min=0) / 2 + (x - knots[0]).clamp(max=0) / 2
    return torch.where(blank, 0.0, (inside + beyond).exp())


def calibrate(model: nn.Module, x: Tensor, noise: Noise, batch_size: int = 256) -> None:
    """Measure the curve that :func:`estimate_sigma` inverts, and keep it with the model.

    Args:
        model: a :class:`cdn.GradResNet`, or one that is wrapped; its calibration buffers are overwritten.
        x: clean images [N, C, H, W] in [0, 1]; a few hundred are enough.
        noise: a :class:`cdn.Noise` key.
        batch_size: images per forward and backward.

    Raises:
        NotFiniteError: the score of an image is not finite.
    """
    if transformed():
        raise RuntimeError(
            "calibrate fills buffers of the model, which torch.func transforms and forward-mode differentiation cannot "
            "follow: call it outside"
        )
    check_floating(x, "calibrate")
    if not len(x):
        raise ValueError("calibrate: expected images [N, C, H, W], one or more, got none")
    density = _density(model)
    curve = torch.zeros_like(density.calibration_mean_square)
    for k, sigma in enumerate(density.calibration_sigma):
        total = 0.0
        for part in x.split(batch_size):
            y, _ = torch_ops.sample_noise(part, sigma, noise)
            total += float(torch_ops.in_float64(score(model, y)).square().flatten(1).mean(1).sum())
        curve[k] = total / len(x)
    require_finite(curve, "calibrate: the score of some images is nan or infinite; the curve stays as it was")
    density.calibration_mean_square.copy_(curve)


def _one_class_each(logits: Tensor) -> Iterator[Tensor]:
    """Yield for every class the gradient of the sum of its logits [B, C] by all logits."""
    for c in range(logits.shape[1]):
        yield torch.zeros_like(logits).index_fill(1, torch.tensor(c, device=logits.device), 1.0)


def _density(model: nn.Module, y: Tensor | None = None) -> LogDensity:
    """Return a model that has a density, and check images that it is to be asked of."""
    if not has_density(model):
        name = kind(model).partition(",")[0]
        raise ValueError(f"{name} models no density: it has no log-probability and no score")
    if y is not None:
        check_floating(y, type(unwrapped(model)).__name__)
    return cast(LogDensity, model if unwrapped(model) is model else Opened(model))


def _check_level(level: Tensor, y: Tensor) -> None:
    """Raise ValueError if a noise level [B] is negative, or much larger than anything in the images it is said of.

    Where noise of standard deviation sigma is, no 64 values stay below sigma / 3: that happens once in 10^38 times.
    """
    if not level.numel() or not can_be_read(level) or not can_be_read(y):
        return
    lowest, highest = (float(value) for value in level.detach().aminmax())
    if lowest < 0:
        raise ValueError(f"sigma must be a noise level of at least 0, got {lowest}")
    if highest >= SUSPICIOUS_LEVEL and y.numel() >= 64 and float(y.detach().abs().max()) < highest / 3:
        raise ValueError(
            f"sigma = {highest:g} is not the noise of these images, which are in [0, 1] and sigma in the same units: "
            f"{highest:g} grey levels are {highest:g} / 255"
        )


class Denoiser(nn.Module):
    """Denoise as ``forward(x, sigma)``, the call that plug-and-play libraries expect (deepinv's ``Denoiser`` protocol).

    Args:
        model: a model of log-densities, or a :class:`cdn.DirectDenoiser`.
        label: None, one class or one per image: the class-conditional denoiser.

    Limitations: the score of the model is blind, it goes by the noise that it sees in x. On images with much less noise
    than sigma says, ``x + sigma^2 score`` goes too far: give it images that do carry noise of standard deviation sigma.
    """

    def __init__(self, model: nn.Module, label: int | Tensor | None = None) -> None:
        super().__init__()
        self.model, self.label = model, label

    def forward(self, x: Tensor, sigma: float | Tensor, **options: Any) -> Tensor:
        """Return ``D(x)``, the shape of x, as :func:`cdn.denoise` does.

        Args:
            x: noisy images [B, C, H, W], by the name that the protocol gives them.
            sigma: their noise level: a number, or a tensor with one value or one per image, of any dimensions.
            options: what else a library hands to all of its denoisers; without effect.

        The graph is kept where grad mode is on, as by any module.
        """
        if isinstance(sigma, Tensor):
            sigma = sigma.reshape(-1) if sigma.numel() > 1 else sigma.reshape(())
        return denoise(self.model, x, sigma, self.label, create_graph=torch.is_grad_enabled())
