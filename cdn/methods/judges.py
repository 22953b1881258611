"""Three ways in which one network classifies: by its softmax, by a vote under noise, and by its denoising errors."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cdn.files import Results
from cdn.methods.denoising_errors import DenoisingErrorClassifier, Weight, integrate, noisy_copies
from cdn.methods.quadrature import level_nodes
from cdn.methods.smoothing import LevelVote
from cdn.methods.smoothing.randomized import NoisyClassifier, Randomized, noiseless
from cdn.model.finite import decided
from cdn.noise_keys import DECISIONS, REFERENCE
from cdn_kernels import Noise, NoiseLevels

SOFTMAX, VOTE, ERROR = "softmax", "vote", "denoising error"


class Judge(NamedTuple):
    """A classifier: the functions of images and a key that decide, and whose gradient attacks follow."""

    decide: NoisyClassifier
    attacked: NoisyClassifier


def judges(
    model: nn.Module,
    levels: NoiseLevels,
    reference: Tensor,
    *,
    vote_levels: Sequence[float],
    nodes: int,
    draws: int,
    attack_nodes: int,
    weight: Weight,
    seed: int,
) -> dict[str, Judge]:
    """Return the three judges by name.

    Args:
        model: a model of log-densities and classes.
        levels: its noise levels in training.
        reference: clean images, by which the vote knows what is typical.
        vote_levels: noise levels of the vote.
        nodes, draws, weight: of the denoising errors.
        attack_nodes: noise levels of a step of an attack, which draws afresh at each: a few are enough for it.
        seed: of the noise of the reference.
    """
    vote = LevelVote(model, model, vote_levels, reference, REFERENCE.key(seed))
    error = lambda nodes, draws: DenoisingErrorClassifier(model, levels, nodes=nodes, draws=draws, weight=weight)
    return {
        SOFTMAX: Judge(noiseless(model), noiseless(model)),
        VOTE: Judge(vote, Randomized(vote, 1)),
        ERROR: Judge(error(nodes, draws), Randomized(error(attack_nodes, 1), 1)),
    }


def is_right(judge: NoisyClassifier, images: Tensor, labels: Tensor, seed: int, batch_size: int) -> Tensor:
    """Return whether a judge is right about each of the first images, [N]; noise does not depend on the batches."""
    with torch.no_grad():
        predicted = torch.cat([decided(judge(part, key)) for part, key in _batches(images, seed, batch_size)])
    return predicted == labels[: len(predicted)]


def _batches(images: Tensor, seed: int, batch_size: int) -> Iterator[tuple[Tensor, Noise]]:
    """Yield images by the batch, with the key of what is drawn for them."""
    for start in range(0, len(images), batch_size):
        yield images[start : start + batch_size], replace(DECISIONS.key(seed), places=start)


def by_levels_and_draws(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    levels: NoiseLevels,
    *,
    nodes: int,
    draws: int,
    weight: Weight,
    seed: int,
    batch_size: int,
) -> tuple[Results, Tensor]:
    """Return accuracies by noise level and by number of draws, and which clean images are classified rightly, [N].

    At each level the softmax, averaged over the same noisy images, stands beside the error. Arguments as for
    :func:`judges` and :func:`is_right`.
    """
    module = DenoisingErrorClassifier(model, levels, nodes=nodes, draws=draws)
    error_parts: list[Tensor] = []
    vote_parts: list[Tensor] = []
    with torch.no_grad():
        for part, key in _batches(x, seed, batch_size):
            error_parts.append(module.errors(part, key))
            votes = [model(y).log_softmax(1) for _, y in noisy_copies(part, levels, key, nodes, draws)]
            vote_parts.append(torch.stack(votes).unflatten(0, error_parts[-1].shape[:2]))
    errors, logits = torch.cat(error_parts, 2), torch.cat(vote_parts, 2)
    right = lambda values: decided(values) == labels
    share = lambda values: right(values).double().mean(-1).tolist()
    counts = sorted({*(2**k for k in range(draws.bit_length())), draws})
    by_draws = [-integrate(errors[:, :n], levels, weight) for n in counts]
    return dict(
        sigma=[sigma for sigma, _ in level_nodes(levels, nodes)],
        by_level={ERROR: share(-errors.mean(1)), SOFTMAX: share(logits.mean(1))},
        by_draws=dict(draws=counts, accuracy=list(map(share, by_draws))),
    ), right(by_draws[-1])
