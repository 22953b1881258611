"""A classifier that adds noise, averaged over draws, for adaptive attacks and for decisions."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cdn.model.inputs import check_counts
from cdn_kernels import Noise

# Positions between the keys of two draws: more than the noise levels of any vote.
STRIDE = 64
# Logits [B, classes] of images [B, C, H, W], to which the classifier adds the noise of a key.
NoisyClassifier = Callable[[Tensor, Noise], Tensor]


class Randomized(nn.Module):
    """Average the class probabilities of a randomized classifier over draws of its noise.

    An attack that gives it another key at every step follows the expectation over noise (Athalye et al., "Obfuscated
    gradients give a false sense of security", 2018) and cannot adapt to a few fixed draws.

    Args:
        classify: a function of images [B, C, H, W] and a :class:`cdn.Noise` key that returns logits [B, classes].
        draws: at least 1; draw k is at the position of the key plus 64 k.

    The forward takes images and a key, and returns logarithms of mean probabilities, [B, classes].
    """

    def __init__(self, classify: NoisyClassifier, draws: int) -> None:
        super().__init__()
        check_counts(draws=draws)
        self.classify, self.draws = classify, draws

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Return logarithms of mean probabilities, [B, classes], of images [B, C, H, W]."""
        values = []
        for draw in range(self.draws):
            logits = self.classify(x, noise.moved(draw * STRIDE))
            # The logits of a density share a huge offset, which has to go before anything is rounded.
            values.append((logits - logits.mean(1, keepdim=True)).log_softmax(1))
        return torch.stack(values).logsumexp(0) - math.log(self.draws)


def noiseless(classifier: Callable[[Tensor], Tensor]) -> NoisyClassifier:
    """Return a classifier that draws nothing as a function of images and a key."""
    return lambda x, noise: classifier(x)
