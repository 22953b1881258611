"""Checks for gradient masking, which makes a model look robust only because attacks fail to find a direction.

After the lists of Athalye, Carlini & Wagner, "Obfuscated gradients give a false sense of security" (2018), and Carlini
et al., "On evaluating adversarial robustness" (2019). A model that shows none of these signs may still be weaker than
measured; the curve of one that shows any of them is not to be believed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdn.methods.attacks import gradient as attacks
from cdn.methods.attacks import losses
from cdn.methods.attacks.ball import Ball, diameter
from cdn.methods.attacks.pursuit import Classifier, Pursuit
from cdn.methods.attacks.sweep import attack
from cdn.noise_keys import ATTACK_STARTS
from cdn.processes import ALONE, Processes

# An attack that goes on must not lose more than this share of what it had gained.
SLACK = 0.01


class Verdict(NamedTuple):
    """One sign looked for.

    Attributes:
        check: what a model without masked gradients shows, in words.
        passed: whether this one shows it.
        measured: the figures behind it, in words.
        values: the same as a list of floats.
    """

    check: str
    passed: bool
    measured: str
    values: list[float]


def masking_checks(
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    norm: str,
    radius: float,
    *,
    steps: int = 50,
    restarts: int = 4,
    queries: int = 500,
    seed: int = 0,
    batch_size: int = 256,
    processes: Processes = ALONE,
) -> list[Verdict]:
    """Look for gradient masking on some images at one radius.

    Args:
        model, x, labels, steps, seed, batch_size: as for :func:`cdn.methods.attacks.attack`. Images that are
            misclassified without an attack are left out.
        norm, radius: of the ball; most telling where about half of the images withstand.
        restarts: starts of the repeated attack, none of them that of the single one.
        queries: steps of the attack without gradients.
        processes: those that divide the images among them, as for :func:`cdn.methods.attacks.sweep`.

    Returns:
        A list of :class:`Verdict`, in the same order for every model.

    Raises:
        ValueError: as :func:`cdn.methods.attacks.attack`, or no image is classified rightly.
    """
    images = _Images(model, x, labels, seed, batch_size, processes).right()
    with torch.no_grad():
        classes = model(images.x[:1]).shape[1]
    white_box = ("apgd-ce", "apgd-dlr") if classes > 2 else ("apgd-ce",)
    ball, everything = Ball(norm, radius), Ball(norm, diameter(norm, x.shape[1:]))
    left = partial(_left, images)
    single = left(ball, white_box, steps)
    repeated = left(ball, white_box, steps, range(1, restarts + 1))
    return [
        _gradients(images),
        _rise(images, ball, steps),
        _compare("more restarts leave no more images", f"{restarts} restarts", repeated, "1", single),
        _compare(
            "gradients find at least what queries find",
            "gradients",
            single,
            f"{queries} queries",
            left(ball, ["random-search"], queries),
        ),
        _unbounded(left(everything, ["pgd"], steps)),
    ]


@dataclass(frozen=True)
class _Images:
    """What is attacked, and by whom: every process attacks its share, and all know what all found."""

    model: Classifier
    x: Tensor
    labels: Tensor
    seed: int
    batch_size: int
    processes: Processes

    def share(self) -> tuple[Tensor, Tensor, int]:
        """Return images and labels of this process, and the place of the first among all."""
        own = self.processes.share(len(self.x))
        return self.x[own.start : own.stop], self.labels[own.start : own.stop], own.start

    def right(self) -> "_Images":
        """Return those that the model classifies rightly."""
        pursuit = self.pursuit()
        pursuit(self.share()[0], gradient=False)
        right = ~self.processes.concatenate(pursuit.found).to(self.x.device)
        if not right.any():
            raise ValueError("labels: expected some images that the model classifies rightly, found none")
        return replace(self, x=self.x[right], labels=self.labels[right])

    def pursuit(self) -> Pursuit:
        """Return a pursuit of the share of this process."""
        x, labels, _ = self.share()
        return Pursuit(self.model, x, labels, losses.cross_entropy, batch_size=self.batch_size, stop=False)

    def mean(self, values: Tensor) -> float:
        """Return the mean over all images of the values of this process's."""
        return float(self.processes.concatenate(values).double().mean())


def _left(images: _Images, ball: Ball, names: Sequence[str], steps: int, restarts: Iterable[int] = (0,)) -> float:
    """Return the share of images that withstand all attacks from all starts."""
    x, labels, first = images.share()
    found = torch.zeros_like(labels, dtype=torch.bool)
    for restart, name in product(restarts, names):
        rows = (~found).nonzero()[:, 0]
        how: dict[str, Any] = dict(steps=steps, restart=restart, seed=images.seed, batch_size=images.batch_size)
        found[rows] = attack(images.model, x[rows], labels[rows], ball, name, places=rows + first, **how).found
    return 1 - images.mean(found)


def _gradients(images: _Images) -> Verdict:
    _, gradient = images.pursuit()(images.share()[0])
    zero = images.mean(gradient.flatten(1).abs().amax(1) == 0)
    return Verdict("no gradient is zero", zero == 0, f"zero for {zero:.1%}", [zero])


def _rise(images: _Images, ball: Ball, steps: int) -> Verdict:
    """Compare the losses where climbs of no step, one, a few, and all of them end: the start is the same random one."""
    counts = sorted({0, 1, max(steps // 5, 1), steps})
    means = []
    for count in counts:
        (x, _, first), pursuit = images.share(), images.pursuit()
        attacks.pgd(pursuit, x, ball, count, replace(ATTACK_STARTS.key(images.seed), places=first))
        means.append(images.mean(pursuit.last_loss))
    drop = max(max(means[: k + 1]) - mean for k, mean in enumerate(means))
    rise = means[-1] - means[0]
    path = " -> ".join(f"{mean:.3g}" for mean in means)
    return Verdict(
        "the loss rises with steps",
        rise > 0 and drop <= SLACK * rise,
        f"{path} after {', '.join(map(str, counts))}",
        means,
    )


def _compare(check: str, stronger_name: str, stronger: float, weaker_name: str, weaker: float) -> Verdict:
    return Verdict(
        check,
        stronger <= weaker,
        f"{stronger:.1%} left by {stronger_name}, {weaker:.1%} by {weaker_name}",
        [stronger, weaker],
    )


def _unbounded(left: float) -> Verdict:
    return Verdict("nothing withstands an unbounded attack", left == 0, f"{left:.1%} left", [left])
