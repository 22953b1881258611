"""What a model wants to know of its images in advance."""

import torch
from torch import Tensor

from cdn.data.split import ImageSplit


def channel_mean(split: ImageSplit, count: int = 2000) -> Tensor:
    """Return the mean of each channel, float32 [C] in [0, 1], of the first `count` images of a split."""
    images, _ = split.load(torch.arange(min(len(split), count)))
    return images.double().div(255).mean((0, 2, 3)).float()
