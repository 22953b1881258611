"""The attacks: projected gradient descent, its automatic variant, and a random search that asks for no gradient.

An attack is a function of a :class:`cdn.methods.attacks.pursuit.Pursuit`, which evaluates its candidates and keeps the
best; the images x [N, C, H, W] in [0, 1]; the :class:`cdn.methods.attacks.ball.Ball` around them; a number of steps;
and a :class:`cdn.Noise` key with the places of the images, which stands for the ``steps + 1`` positions after it too:
what is drawn for an image does not depend on the others. Each evaluates ``steps + 1`` candidates, the first of them
random.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cdn.methods.attacks.ball import Ball, uniform
from cdn.methods.attacks.losses import cross_entropy
from cdn.methods.attacks.pursuit import Pursuit
from cdn.methods.smoothing.randomized import NoisyClassifier
from cdn.noise_keys import ATTACK_STARTS, ATTACKS
from cdn_kernels import Noise

# Projected gradient descent can cross the ball 1.25 times: it reaches any border and has steps left to move along it.
REACH = 2.5
MOMENTUM = 0.75
ENOUGH_RISES = 0.75
Search = Callable[[Pursuit, Tensor, Ball, int, Noise], None]


def pgd(pursuit: Pursuit, x: Tensor, ball: Ball, steps: int, noise: Noise) -> None:
    """Climb by steps of constant length ``2.5 radius / steps`` along the steepest direction, projected to the ball.

    After Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018).
    """
    y = ball.draw(x, noise)
    for _ in range(steps):
        _, gradient = pursuit(y)
        y = ball.project(x, y + REACH * ball.radius / steps * ball.steepest(gradient))
    pursuit(y, gradient=False)


def apgd(pursuit: Pursuit, x: Tensor, ball: Ball, steps: int, noise: Noise) -> None:
    """Climb with momentum and with steps that are halved, from the best point so far, where progress has stalled.

    Auto-PGD of Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks" (2020), algorithm 1: at the checkpoints, an image whose loss rose in fewer than three quarters of the steps
    since the last one, or whose best loss and step have both stayed the same since, goes on with half the step.
    """
    marks = checkpoints(steps)
    previous = y = ball.draw(x, noise)
    step = torch.full_like(x[:, :1, :1, :1], 2 * ball.radius)
    loss, gradient = pursuit(y)
    rises, halved, best_before = torch.zeros_like(loss), torch.zeros_like(pursuit.found), pursuit.best_loss.clone()
    last_mark = 0
    for k in range(1, steps + 1):
        momentum = MOMENTUM if k > 1 else 1.0
        ahead = ball.project(x, y + step * ball.steepest(gradient))
        previous, y = y, ball.project(x, y + momentum * (ahead - y) + (1 - momentum) * (y - previous))
        loss_before = loss
        loss, slope = pursuit(y, gradient=k < steps)
        if slope is None:  # nothing follows the last step
            break
        gradient = slope
        rises += loss > loss_before
        if k in marks:
            stalled = rises < ENOUGH_RISES * (k - last_mark)
            stalled |= ~halved & (pursuit.best_loss == best_before)
            step[stalled] /= 2
            y[stalled], loss[stalled] = pursuit.best[stalled], pursuit.best_loss[stalled]
            gradient[stalled] = pursuit.best_gradient[stalled]
            halved, best_before, last_mark = stalled, pursuit.best_loss.clone(), k
            rises.zero_()


def checkpoints(steps: int) -> set[int]:
    """Return the steps at which :func:`apgd` looks back: ever closer, from 22 % of them on, down to every 6 %."""
    # In hundredths: exact, so that no rounding moves a checkpoint.
    marks, before, now = [], 0, 22
    while now <= 100:
        marks.append(-(-now * steps // 100))
        before, now = now, now + max(now - before - 3, 6)
    return set(marks)


def random_search(pursuit: Pursuit, x: Tensor, ball: Ball, steps: int, noise: Noise) -> None:
    """Change random squares of the image, and keep what raises the loss: no gradient is asked for.

    After the Square attack (Andriushchenko et al., 2020). In L-infinity: a start of vertical stripes, then squares in
    which every channel goes to one end of its range, on the schedule of that paper. In L2 the same moves,
    scaled to the radius and projected: a simplification, weaker than what the paper does there.
    """
    count, channels, height, width = x.shape
    signs = lambda drawn: torch.where(drawn < 0.5, -1, 1).to(x)
    amplitude = ball.amplitude(x)
    stripes = signs(uniform((count, channels, 1, width), noise, x))
    pursuit(ball.project(x, x + amplitude * stripes), gradient=False)
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    rows, columns = rows.view(1, 1, -1, 1), columns.view(1, 1, 1, -1)
    for k in range(steps):
        side = min(max(round(math.sqrt(_share(k / steps) * height * width)), 1), height, width)
        drawn = uniform((count, 2 + channels, 1, 1), noise.moved(1 + k), x)
        top, left = (
            (drawn[:, axis : axis + 1] * (size - side + 1)).long().clamp(max=size - side)
            for axis, size in enumerate((height, width))
        )
        square = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        change = 2 * amplitude * signs(drawn[:, 2:]) * square.to(x)
        pursuit(ball.project(x, pursuit.best + change), gradient=False)


def _share(progress: float) -> float:
    """Return the share of the image that :func:`random_search` changes at once, given the share of steps taken."""
    halvings = sum(progress > mark for mark in (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8))
    return 0.8 / 2**halvings


def strongest(
    model: NoisyClassifier, x: Tensor, labels: Tensor, ball: Ball, *, steps: int, seed: int, batch_size: int
) -> Tensor:
    """Return images of the ball around x [N, C, H, W] that projected gradient descent found to fool a model most.

    Args:
        model: a function from images and a key to logits, which draws noise of the key or none; it gets another key at
            every step, with the places of its images.
        x, labels: the images and their classes.
        ball: where to search.
        steps, seed: of the descent.
        batch_size: images per evaluation of the model.
    """
    pursuit = Pursuit(model, x, labels, cross_entropy, batch_size=batch_size, stop=False, noise=ATTACKS.key(seed))
    pgd(pursuit, x, ball, steps, ATTACK_STARTS.key(seed))
    return pursuit.best
