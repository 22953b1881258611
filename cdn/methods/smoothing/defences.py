"""The ways to defend a classifier by a denoiser: what is attacked, judged and certified of each."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

import cdn_kernels
from cdn.methods.smoothing.protected import LevelVote, Protected
from cdn.methods.smoothing.randomized import NoisyClassifier, Randomized, noiseless
from cdn.noise_keys import REFERENCE

SYSTEMS = ALONE, DENOISED, PURIFIED, VOTE, ITSELF = "alone", "denoised", "purified", "vote", "itself"


class System(NamedTuple):
    """A way to classify.

    Attributes:
        attacked: the function of images and a key whose gradient attacks follow, with another key at every step.
        judged: the one that decides: the same with more draws of noise, and others.
        certified: the module that is smoothed for certificates; None where there are none.
    """

    attacked: NoisyClassifier
    judged: NoisyClassifier
    certified: nn.Module | None


def defences(
    classifier: nn.Module,
    model: nn.Module,
    sigma: float,
    levels: Sequence[float],
    reference: Tensor | None,
    *,
    itself: bool,
    steps: int,
    draws: int,
    attack_draws: int,
    seed: int,
) -> dict[str, System]:
    """Return the systems by name.

    Args:
        classifier: the frozen classifier.
        model: what denoises for it.
        sigma: noise level.
        levels: those of the vote.
        reference: clean images, by which a vote knows what is typical; None where the model is no density.
        itself: whether the model classifies too, and, if it is a density, stands beside.
        steps: of purification.
        draws, attack_draws: of noise per decision, and per step of an attack.
        seed: of the noise of the reference.
    """
    classifier = classifier.eval()
    protected, purified = (Protected(classifier, model, sigma, count) for count in (1, steps))

    def randomized(classify: NoisyClassifier, certified: nn.Module | None = None) -> System:
        return System(Randomized(classify, attack_draws), Randomized(classify, draws), certified)

    noisy = lambda module: lambda x, key: module(cdn_kernels.sample_noise(x, sigma, key)[0])
    systems = {
        ALONE: System(noiseless(classifier), noiseless(classifier), classifier),
        DENOISED: randomized(noisy(protected), protected),
        PURIFIED: randomized(noisy(purified)),
    }
    if reference is not None:
        systems[VOTE] = randomized(LevelVote(classifier, model, levels, reference, REFERENCE.key(seed)))
        if itself:
            systems[ITSELF] = System(noiseless(model), noiseless(model), model)
    return systems
