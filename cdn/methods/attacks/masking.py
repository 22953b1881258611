"""Checks for gradient masking, which makes a model look robust only because attacks fail to find a direction.

After the lists of Athalye, Carlini & Wagner, "Obfuscated gradients give a false sense of security" (2018), and Carlini
et al., "On evaluating adversarial robustness" (2019). A model that shows none of these signs may still be weaker than
measured; the curve of one that shows any of them is not to be believed.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from cdn.methods.attacks import gradient as attacks
from cdn.methods.attacks import losses
from cdn.methods.attacks.ball import Ball, diameter
from cdn.methods.attacks.pursuit import Classifier, Pursuit
from cdn.methods.attacks.sweep import attack
from cdn.noise_keys import ATTACK_STARTS

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
) -> list[Verdict]:
    """Look for gradient masking on some images at one radius.

    Args:
        model, x, labels, steps, seed, batch_size: as for :func:`cdn.methods.attacks.attack`. Images that are
            misclassified without an attack are left out.
        norm, radius: of the ball; most telling where about half of the images withstand.
        restarts: starts of the repeated attack, none of them that of the single one.
        queries: steps of the attack without gradients.

    Returns:
        A list of :class:`Verdict`, in the same order for every model.

    Raises:
        ValueError: as :func:`cdn.methods.attacks.attack`, or no image is classified rightly.
    """
    start = Pursuit(model, x, labels, losses.cross_entropy, batch_size=batch_size, stop=False)
    _, gradient = start(x)
    right = ~start.found
    if not right.any():
        raise ValueError("labels: expected some images that the model classifies rightly, found none")
    x, labels, gradient = x[right], labels[right], gradient[right]
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    white_box = ("apgd-ce", "apgd-dlr") if classes > 2 else ("apgd-ce",)
    ball, everything = Ball(norm, radius), Ball(norm, diameter(norm, x.shape[1:]))
    left = partial(_left, model, x, labels, seed=seed, batch_size=batch_size)
    single = left(ball, white_box, steps)
    repeated = left(ball, white_box, steps, range(1, restarts + 1))
    return [
        _gradients(gradient),
        _rise(model, x, labels, ball, steps, seed, batch_size),
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


def _left(
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    ball: Ball,
    names: Sequence[str],
    steps: int,
    restarts: Iterable[int] = (0,),
    *,
    seed: int,
    batch_size: int,
) -> float:
    """Return the share of images that withstand all attacks from all starts."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    for restart, name in product(restarts, names):
        rows = (~found).nonzero()[:, 0]
        found[rows] = attack(
            model, x[rows], labels[rows], ball, name, steps=steps, restart=restart, seed=seed, batch_size=batch_size
        ).found
    return 1 - float(found.double().mean())


def _gradients(gradient: Tensor) -> Verdict:
    zero = float((gradient.flatten(1).abs().amax(1) == 0).double().mean())
    return Verdict("no gradient is zero", zero == 0, f"zero for {zero:.1%}", [zero])


def _rise(model: Classifier, x: Tensor, labels: Tensor, ball: Ball, steps: int, seed: int, batch_size: int) -> Verdict:
    """Compare the losses where climbs of no step, one, a few, and all of them end: the start is the same random one."""
    counts = sorted({0, 1, max(steps // 5, 1), steps})
    means = []
    for count in counts:
        pursuit = Pursuit(model, x, labels, losses.cross_entropy, batch_size=batch_size, stop=False)
        attacks.pgd(pursuit, x, ball, count, ATTACK_STARTS.generator(seed))
        means.append(float(pursuit.last_loss.double().mean()))
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
