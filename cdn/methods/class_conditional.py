"""Class-conditional denoising, and adversarial gradients as differences of denoisers.

For ``f(y)_c = log p(y, c)`` two identities hold exactly (Thiry & Guth, "Classification-denoising networks", 2024):
``D(y, c) - D(y) = sigma^2 grad_y log p(c | y)``, so the direction that a gradient attack takes is a difference of two
denoised images, and ``sum_c p(c | y) D(y, c) = D(y)``.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cdn.evaluation.metrics import mean_and_error, psnr
from cdn.files import Results
from cdn.model.density import denoise
from cdn.model.finite import UNDECIDED, decided
from cdn.model.modes import evaluating
from cdn_kernels import cross_entropy
from cdn_kernels import score as gradient


class Denoised(NamedTuple):
    """The three denoised versions of noisy images, each [B, C, H, W], and the classes that they were given.

    Attributes:
        unconditional: D(y).
        true: D(y, c) for the true class.
        wrong: D(y, c) for the most probable of the wrong classes.
        wrong_label: that class, int64 [B]; -1 for an image whose logits are not
            finite, and ``wrong`` is nan.
        posterior: p(c | y), [B, classes].
    """

    unconditional: Tensor
    true: Tensor
    wrong: Tensor
    wrong_label: Tensor
    posterior: Tensor


def denoise_with_classes(model: nn.Module, y: Tensor, sigma: float | Tensor, labels: Tensor) -> Denoised:
    """Denoise without a class, with the true one, and with the most probable wrong one.

    Args:
        model: a model of log-densities of at least two classes.
        y: noisy images [B, C, H, W].
        sigma: noise level: a float, a 0-d tensor, or one value per image [B].
        labels: the true classes, int64 [B].

    Returns:
        :class:`Denoised`.

    Raises:
        ValueError: fewer than two classes, or what :func:`cdn.denoise` refuses.
    """
    with torch.no_grad():
        logits = model(y)
    if logits.shape[1] < 2:
        raise ValueError(f"model must know at least two classes to be wrong about one, got {logits.shape[1]}")
    wrong = torch.where(decided(logits) < 0, UNDECIDED, decided(logits.scatter(1, labels[:, None], -torch.inf)))
    of_wrong = denoise(model, y, sigma, wrong.clamp(min=0))
    return Denoised(
        denoise(model, y, sigma),
        denoise(model, y, sigma, labels),
        torch.where((wrong < 0).view(-1, 1, 1, 1), torch.nan, of_wrong),
        wrong,
        logits.softmax(1),
    )


class ClassGains(NamedTuple):
    """What classes change in N denoised images, each [N] on the CPU.

    Attributes:
        psnr_noisy, psnr_unconditional, psnr_true, psnr_wrong: of y, D(y), and D(y, c) for the true and the most
            probable wrong class, float64 in dB.
        error, error_true: mean squared errors of D(y) and of D(y, c) for the true class, float64.
        moved: mean square of D(y, c) - D(y) for the true class, float64.
        right: whether the most probable class is the true one, bool.
    """

    psnr_noisy: Tensor
    psnr_unconditional: Tensor
    psnr_true: Tensor
    psnr_wrong: Tensor
    error: Tensor
    error_true: Tensor
    moved: Tensor
    right: Tensor


def class_gains(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    noise: Tensor,
    sigma: float,
    *,
    batch_size: int = 64,
    precision: str = "float32",
    bar: tqdm | None = None,
) -> ClassGains:
    """Measure what the true and a wrong class change in denoised images.

    Args:
        model: a model of log-densities of at least two classes.
        x: clean images [N, C, H, W] in [0, 1].
        labels: their classes, int64 [N].
        noise: unit noise, the shape of x.
        sigma: noise level, a float in the units of the images.
        batch_size: images per forward.
        precision: "float32", or "bf16" for a forward under autocast.
        bar: a tqdm bar to advance by the number of images.

    Returns:
        :class:`ClassGains`.
    """
    square = lambda a, b: (a - b).double().square().flatten(1).mean(1)
    parts = []
    with evaluating(model, precision):
        for clean, label, eps in zip(*(values.split(batch_size) for values in (x, labels, noise))):
            y = clean + sigma * eps
            found = denoise_with_classes(model, y, sigma, label)
            part = ClassGains(
                psnr(y, clean),
                psnr(found.unconditional, clean),
                psnr(found.true, clean),
                psnr(found.wrong, clean),
                square(found.unconditional, clean),
                square(found.true, clean),
                square(found.true, found.unconditional),
                decided(found.posterior) == label,
            )
            parts.append([values.cpu() for values in part])
            if bar is not None:
                bar.update(len(clean))
    return ClassGains(*(torch.cat(values) for values in zip(*parts)))


def adversarial_gradient(model: nn.Module, y: Tensor, labels: Tensor) -> Tensor:
    """Return ``grad_y log p(c | y)``, the shape of y, by a backward pass through the cross-entropy.

    Args:
        model: a classifier.
        y: images [B, C, H, W].
        labels: int64 [B].
    """
    return gradient(lambda y: -cross_entropy(model(y), labels, reduction="none"), y)


class Mismatch(NamedTuple):
    """How far two sides of an identity are apart.

    Attributes:
        maximum: largest difference of any value, in the units of the images.
        relative: norm of the difference over that of the right-hand side, both over the whole batch.
    """

    maximum: float
    relative: float


def difference_identity(model: nn.Module, y: Tensor, sigma: float, labels: Tensor) -> Mismatch:
    """Measure ``D(y, c) - D(y) = sigma^2 grad_y log p(c | y)``; arguments as for :func:`denoise_with_classes`."""
    left = denoise(model, y, sigma, labels) - denoise(model, y, sigma)
    return _mismatch(left, sigma**2 * adversarial_gradient(model, y, labels))


def mixture_identity(model: nn.Module, y: Tensor, sigma: float) -> Mismatch:
    """Measure ``sum_c p(c | y) D(y, c) = D(y)``, less y on both sides, whose size would hide the difference."""
    with torch.no_grad():
        posterior = model(y).softmax(1)
    mixture = sum(p.view(-1, 1, 1, 1) * denoise(model, y, sigma, c) for c, p in enumerate(posterior.unbind(1)))
    return _mismatch(mixture - y, denoise(model, y, sigma) - y)


def _mismatch(left: Tensor, right: Tensor) -> Mismatch:
    difference = (left - right).double()
    return Mismatch(float(difference.abs().max()), float(difference.norm() / right.double().norm()))


def summarize_gains(gains: ClassGains) -> Results:
    """Return means over images, and paired differences with their standard errors, of :class:`ClassGains`.

    Were the model exact, the true class would lower the mean squared error by the mean square of D(y, c) - D(y), by
    Pythagoras; ``exact_gain`` is that, and ``gain`` what it was lowered by, both as shares of the error of D(y).
    """
    true, error = gains.psnr_true - gains.psnr_unconditional, gains.error.mean()
    psnrs = ("psnr_noisy", "psnr_unconditional", "psnr_true", "psnr_wrong")
    return dict(
        {key: float(getattr(gains, key).mean()) for key in psnrs},
        accuracy=float(gains.right.double().mean()),
        true=mean_and_error(true),
        wrong=mean_and_error(gains.psnr_wrong - gains.psnr_unconditional),
        true_where_misclassified=mean_and_error(true[~gains.right]),
        gain=mean_and_error((gains.error - gains.error_true) / error),
        exact_gain=mean_and_error(gains.moved / error),
    )


def identities(model: nn.Module, x: Tensor, labels: Tensor, noise: Tensor, sigma: float) -> Results:
    """Measure both identities in float32 and float64: {dtype: {identity: [maximum, relative]}}.

    Args:
        model: a :class:`cdn.GradResNet`.
        x, noise: clean images and unit noise, [N, C, H, W].
        labels: the true classes, int64 [N].
        sigma: noise level.
    """
    results = {}
    for name, twin in (("float32", model), ("float64", copy.deepcopy(model).double())):
        with evaluating(twin, "float32"):
            y = (x + sigma * noise).to(getattr(torch, name))
            results[name] = dict(
                difference=list(difference_identity(twin, y, sigma, labels)),
                mixture=list(mixture_identity(twin, y, sigma)),
            )
    return results


def round_down(value: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 50, ... (and their tenths, ...) that is at most a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(step * power for step in (1, 2, 5) if step * power <= value)
