"""The mean of the channels reads a few images at a time, and is what it would be of all at once."""

import math

import pytest
import torch

from cdn.data import statistics
from cdn.data.split import ImageSplit, MemorySplit


class Counting(ImageSplit):
    """Images that are made when asked for, and the most pixels that were asked for at once."""

    def __init__(self, count, shape):
        super().__init__(torch.zeros(count, dtype=torch.int64), shape)
        self.most = self.read = 0

    def _read(self, indices):
        self.read += len(indices)
        self.most = max(self.most, len(indices))
        values = (indices % 251).to(torch.uint8)
        return values[:, None, None, None].expand(-1, *self.shape).contiguous()


@pytest.mark.parametrize(("side", "count"), [(8, 2000), (64, 500), (256, 100)])
def test_few_images_are_held_at_once(side, count):
    split = Counting(count, (3, side, side))
    mean = statistics.channel_mean(split)
    assert split.read == count
    assert split.most * math.prod(split.shape) <= 2**24
    expected = sum(i % 251 for i in range(count)) / count / 255
    assert mean.dtype == torch.float32 and mean.tolist() == pytest.approx([expected] * 3, rel=1e-6)


def test_an_image_larger_than_the_share_is_read_alone(monkeypatch):
    monkeypatch.setattr(statistics, "AT_ONCE", 10)
    split = Counting(5, (1, 6, 6))
    assert statistics.channel_mean(split).tolist() == pytest.approx([2 / 255]) and split.most == 1


def test_only_the_first_images_count():
    split = Counting(300, (1, 4, 4))
    assert statistics.channel_mean(split, 10).tolist() == pytest.approx([4.5 / 255]) and split.read == 10


@pytest.mark.parametrize("shape", [(300, 1, 8, 8), (50, 3, 31, 17), (1, 2, 1, 1)])
def test_it_is_the_mean_of_all_at_once(shape):
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    split = MemorySplit(images, torch.zeros(len(images), dtype=torch.int64))
    assert torch.equal(statistics.channel_mean(split), images.double().div(255).mean((0, 2, 3)).float())
