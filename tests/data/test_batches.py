"""Batches on a device: those of the split, step by step, whatever is drawn ahead."""

import pytest
import torch

from cdn.data import Augmentation, Batches, Subset, batch_indices
from cdn.data.batches import AHEAD
from cdn.data.split import ImageSplit, MemorySplit
from cdn.errors import DataError

CPU = torch.device("cpu")


class Decoded(ImageSplit):
    """A split whose images are not in memory."""

    def __init__(self, split):
        super().__init__(split.labels, split.shape)
        self.split = split

    def _read(self, indices):
        return self.split._read(indices)


@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 9, 7), generator=generator).to(torch.uint8)
    return MemorySplit(images, torch.randint(0, 10, (50,), generator=generator))


@pytest.mark.parametrize("options", [dict(), dict(crop_padding=3, flip=True), dict(crop_size=5)], ids=str)
@pytest.mark.parametrize(
    "view", [lambda s: s, lambda s: Subset(s, torch.arange(49, 2, -2)), Decoded], ids=["memory", "subset", "decoded"]
)
def test_a_batch_is_the_augmented_images_of_its_step(split, view, options):
    split = view(split)
    augmentation = Augmentation(split.shape, **options)
    batches = Batches(split, 8, 5, CPU, augmentation)
    for step in (0, 1, 4, AHEAD - 1, AHEAD, 3 * AHEAD + 7, 1):
        batches.seek(step)
        images, labels = batches.read()
        expected, of = split.load(batch_indices(len(split), 8, step, 5))
        assert torch.equal(images, augmentation.apply(expected, augmentation.draw(8, 5, step)))
        assert torch.equal(labels, of)


def test_the_tensors_of_a_step_stay_where_they_are(split):
    """As the replay of a recorded step needs it; nothing of the split is written to."""
    before = split.pixels.clone()
    batches = Batches(split, 8, 5, CPU, Augmentation(split.shape, crop_padding=2, flip=True))
    addresses = set()
    for step in (0, 1, AHEAD):
        batches.seek(step)
        images, _ = batches.read()
        images.zero_()
        addresses.add(tuple(t.data_ptr() for t in (batches.images, batches.labels, batches.plan, batches.row)))
    assert len(addresses) == 1 and torch.equal(split.pixels, before)


class Asked(Decoded):
    """One that counts the images that it is asked for."""

    count = 0

    def _read(self, indices):
        self.count += len(indices)
        return super()._read(indices)


@pytest.mark.parametrize("shares", [(range(8),), (range(3), range(3, 8)), (range(5), range(5, 5), range(5, 8))])
def test_shares_are_those_of_the_whole_batch_and_others_are_not_read(split, shares):
    augmentation = Augmentation(split.shape, crop_padding=3, flip=True)
    for view in (lambda s: s, Asked):
        whole = Batches(view(split), 8, 5, CPU, augmentation)
        parts = [Batches(view(split), 8, 5, CPU, augmentation, places) for places in shares]
        for step in (0, AHEAD + 3):
            for batches in (whole, *parts):
                batches.seek(step)
            expected, found = whole.read(), [batches.read() for batches in parts]
            for tensor, those in zip(expected, zip(*found)):
                assert torch.equal(tensor, torch.cat(those))
    assert [batches.split.count for batches in parts] == [2 * len(places) for places in shares]


def test_batches_larger_than_the_split_are_refused(split):
    with pytest.raises(DataError, match=r"batch_size: expected 1\.\.50"):
        Batches(split, 51, 0, CPU, Augmentation(split.shape)).seek(0)
