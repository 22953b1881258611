"""Attacks by name, at one radius or at many, for curves of robust accuracy."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cdn.methods.attacks import gradient as attacks
from cdn.methods.attacks import losses
from cdn.methods.attacks.ball import Ball
from cdn.methods.attacks.pursuit import UNTOLD, Classifier, Pursuit
from cdn.model.finite import require_finite
from cdn.model.inputs import check_counts
from cdn.noise_keys import ATTACK_STARTS
from cdn.processes import ALONE, Processes

# Each restart has so many positions, by the power of two.
_RESTART_BITS = 32
# Name: the search and the loss that it climbs.
ATTACKS: dict[str, tuple[attacks.Search, losses.Loss]] = {
    "pgd": (attacks.pgd, losses.cross_entropy),
    "apgd-ce": (attacks.apgd, losses.cross_entropy),
    "apgd-dlr": (attacks.apgd, losses.difference_of_logits_ratio),
    "random-search": (attacks.random_search, losses.margin),
}


class Adversarial(NamedTuple):
    """What :func:`attack` found.

    Attributes:
        found: bool [N].
        images: [N, C, H, W], adversarial where found, elsewhere the best that the attack has seen.
    """

    found: Tensor
    images: Tensor


class Sweep(NamedTuple):
    """What :func:`sweep` found.

    Attributes:
        norm: of the balls.
        radii: in rising order.
        broken_at: float64 [N], the smallest of the radii at which an image was fooled; 0 if it is misclassified
            without any attack, inf if it never was fooled.
        images: [N, C, H, W], adversarial where broken_at is finite; the given ones elsewhere.
    """

    norm: str
    radii: list[float]
    broken_at: Tensor
    images: Tensor

    @property
    def clean_accuracy(self) -> float:
        """The share of images that are classified rightly without an attack."""
        return float((self.broken_at > 0).double().mean())

    @property
    def robust_accuracy(self) -> list[float]:
        """The share of images still classified rightly, for each of the radii: it never rises."""
        return [float((self.broken_at > radius).double().mean()) for radius in self.radii]


def attack(
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    ball: Ball,
    name: str = "apgd-ce",
    *,
    steps: int = 50,
    restart: int = 0,
    targets: Tensor | None = None,
    seed: int = 0,
    places: int | Tensor = 0,
    batch_size: int = 256,
) -> Adversarial:
    """Attack every image once.

    Args:
        model: a function from images [B, C, H, W] to logits [B, classes]: deterministic, in evaluation mode, with
            parameters that may require gradients or not. It is attacked as it is: no noise, no averaging.
        x: images [N, C, H, W] in [0, 1].
        labels: true classes, int64 [N].
        ball: where to search, :class:`cdn.methods.attacks.Ball`.
        name: one of ``ATTACKS``.
        steps: of the search; one more candidate is evaluated, with a gradient each but for "random-search".
        restart: which of the random starts: each gives another result, the same seed the same one.
        targets: None, or the classes to reach, int64 [N]; then only an image of its target's class counts as found.
        seed: of all random draws, which are independent for every image.
        places: the place of the first image in the whole set, or of each, int64 [N], by which its draws are named:
            parts of a set are attacked as the whole is.
        batch_size: images per evaluation of the model; about 10 copies of x are held besides.

    Returns:
        :class:`Adversarial`.

    Raises:
        ValueError: an unknown attack, an argument out of range or of the wrong shape, or a model that cannot be
            attacked so: logits that are not finite, no gradient, too few classes for the loss.
    """
    _check(x, labels, [name], steps, restarts=1)
    if targets is not None:
        _check_classes("targets", targets, x)
    noise = replace(ATTACK_STARTS.key(seed, restart << _RESTART_BITS), places=places)
    search, loss = ATTACKS[name]
    pursuit = Pursuit(model, x, labels, loss, targets=targets, batch_size=batch_size)
    if len(x):
        search(pursuit, x, ball, steps, noise)
    return Adversarial(pursuit.found, pursuit.best)


def sweep(
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    norm: str,
    radii: Iterable[float],
    names: Sequence[str] = ("apgd-ce",),
    *,
    steps: int = 50,
    restarts: int = 1,
    targeted: int = 0,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
    processes: Processes = ALONE,
) -> Sweep:
    """Attack images at rising radii, each until something has fooled it.

    A ball holds all smaller ones, so an image that was fooled counts as fooled at every larger radius, and only those
    still classified rightly are attacked again. Every attack, restart and target faces what those before it have left.

    Args:
        model, x, labels, steps, seed, batch_size: as for :func:`attack`.
        norm: "linf" or "l2".
        radii: numbers above 0, in units where white is 1, in any order.
        names: attacks to try in turn, of ``ATTACKS``.
        restarts: how often to try each of them.
        targeted: 0 to leave the attacks the choice of the wrong class, or K to aim at each of the K wrong classes most
            likely without an attack, in turn; then an image counts as fooled if it reaches the class aimed at.
        progress: show a progress bar on stderr.
        processes: those that divide the images among them, each with the same model, images and arguments. What is
            drawn for an image does not depend on the division; the logits of a model may, by their rounding.

    Returns:
        :class:`Sweep`, the same on all processes.

    Raises:
        ValueError: as :func:`attack`; no radius, or one that is not above 0; more targets than wrong classes.
    """
    radii = sorted(radii)
    _check(x, labels, names, steps, restarts)
    if not radii or not radii[0] > 0:
        raise ValueError(f"radii: expected numbers above 0, got {radii}")
    own = processes.share(len(x))
    x, labels = x[own.start : own.stop], labels[own.start : own.stop]
    broken_at, images = torch.zeros(0, dtype=torch.float64), x.clone()
    plan: list[tuple[float, str, int, Tensor | None]] = []
    if len(x):
        logits = _logits(model, x, batch_size)
        broken_at = torch.where(logits.argmax(1) == labels, torch.inf, 0.0).double()
        plan = list(product(radii, names, range(restarts), _aims(logits, labels, targeted)))
    with tqdm(plan, unit="attack", leave=False, disable=not (progress and processes.first)) as bar:
        for radius, name, restart, aim in bar:
            rows = broken_at.isinf().nonzero()[:, 0]
            bar.set_postfix(radius=f"{radius:.3g}", left=len(rows))
            result = attack(
                model,
                x[rows],
                labels[rows],
                Ball(norm, radius),
                name,
                steps=steps,
                restart=restart,
                targets=None if aim is None else aim[rows],
                seed=seed,
                places=rows + own.start,
                batch_size=batch_size,
            )
            fooled = rows[result.found]
            broken_at[fooled], images[fooled] = radius, result.images[result.found]
    found = (processes.concatenate(values).to(x.device) for values in (broken_at, images))
    return Sweep(norm, radii, *found)


def _logits(model: Classifier, x: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(batch_size)])
    require_finite(logits, UNTOLD)
    return logits


def _aims(logits: Tensor, labels: Tensor, targeted: int) -> Sequence[Tensor | None]:
    """Return the most likely wrong classes, so many times one for each image [N]; one None to aim at none."""
    if not 0 <= targeted < logits.shape[1]:
        raise ValueError(f"targeted: expected 0 to {logits.shape[1] - 1} of the wrong classes, got {targeted}")
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    return list(wrong.topk(targeted, dim=1).indices.T) if targeted else [None]


def _check(x: Tensor, labels: Tensor, names: Sequence[str], steps: int, restarts: int) -> None:
    for name in names:
        if name not in ATTACKS:
            raise ValueError(f"attack: expected one of {', '.join(ATTACKS)}, got {name!r}")
    check_counts(steps=steps, restarts=restarts)
    if x.dim() != 4 or not x.is_floating_point() or (len(x) and not 0 <= float(x.min()) <= float(x.max()) <= 1):
        raise ValueError(
            f"x: expected floating-point images [N, C, H, W] in [0, 1], got {x.dtype} {list(x.shape)}"
            + (f" in [{float(x.min()):.3g}, {float(x.max()):.3g}]" if x.numel() else "")
        )
    _check_classes("labels", labels, x)


def _check_classes(name: str, classes: Tensor, x: Tensor) -> None:
    if classes.shape != x.shape[:1] or classes.dtype != torch.int64:
        raise ValueError(
            f"{name}: expected one int64 class per image, [{len(x)}], got {classes.dtype} {list(classes.shape)}"
        )
