"""Losses that attacks maximize: one value per image, larger where it is closer to being misclassified.

All are functions of differences of logits. The logits of a density share an offset of thousands, whose gradient is far
larger than that of their differences: it has to cancel in the weights that a loss gives to the logits, not after
rounding. That is why cross-entropy is not PyTorch's, which would hide adversarial images from the attack.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import cdn_kernels

# Of logits [B, classes], the true classes [B] and, if any, the classes to reach [B]; returns [B].
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of the labels, or minus that of the targets.

    Args:
        logits: [B, C].
        labels: the true classes, int64 [B].
        targets: None, or the classes to reach, int64 [B].

    Returns:
        [B], in nats; see :func:`cdn_kernels.cross_entropy`.
    """
    if targets is not None:
        return -cross_entropy(logits, targets)
    return cdn_kernels.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return by how much the best wrong class leads the true one, or the target leads all others, in nats [B].

    Arguments as for :func:`cross_entropy`.
    """
    if targets is not None:
        return -margin(logits, targets)
    leads = logits - logits.gather(1, labels[:, None])
    return leads.scatter(1, labels[:, None], -torch.inf).amax(1)


def difference_of_logits_ratio(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the DLR loss of Croce & Hein, which neither a shift nor a positive factor of all logits changes.

    After "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks" (2020),
    equations 6 and 7, with ``z_(k)`` the k-th largest logit: ``(max_{c != y} z_c - z_y) / (z_(1) - z_(3))``; for a
    target t ``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)``.

    Arguments as for :func:`cross_entropy`.

    Returns:
        [B]; 0 / 0 counts as 0.

    Raises:
        ValueError: fewer than 3 classes, or 4 with targets.
    """
    needed = 3 if targets is None else 4
    if logits.shape[1] < needed:
        raise ValueError(
            f"the DLR loss compares {needed} logits{' of a targeted attack' if needed == 4 else ''}, "
            f"got a model of {logits.shape[1]} classes"
        )
    largest = logits.topk(needed, dim=1).values
    if targets is None:
        lead, span = margin(logits, labels), largest[:, 0] - largest[:, 2]
    else:
        picked = logits.gather(1, torch.stack([targets, labels], 1))
        lead, span = picked[:, 0] - picked[:, 1], largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    return lead / span.clamp(min=1e-30)
