"""The channel mean of training images, which a model subtracts."""

import math

import torch
from torch import Tensor

from cdn.data.split import ImageSplit

AT_ONCE = 2**23  # values that are read at a time, which take some ten times as many bytes on their way into a sum


def channel_mean(split: ImageSplit, count: int = 2000) -> Tensor:
    """Return the mean of each channel, float32 [C] in [0, 1], of the first `count` images of a split.

    Sums are exact, so that it does not matter how many images are read at a time.
    """
    count = min(len(split), count)
    channels, height, width = split.shape
    total = torch.zeros(channels, dtype=torch.int64)
    for indices in torch.arange(count).split(max(AT_ONCE // math.prod(split.shape), 1)):
        images, _ = split.load(indices)
        total += images.sum((0, 2, 3), dtype=torch.int64)
    return total.double().div(255 * count * height * width).float()
