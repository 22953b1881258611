"""Splits, datasets and the choice of one by name; the bundled digits."""

import dataclasses
import sys

import pytest
import torch

from cdn.data import DATASETS, Dataset, ImageSplit, Subset, load_dataset
from cdn.data.dataset import MemorySplit
from cdn.errors import DataError

IMAGES = torch.arange(4 * 1 * 2 * 3, dtype=torch.uint8).view(4, 1, 2, 3)
LABELS = torch.tensor([0, 1, 2, 1])


def test_a_memory_split_reads_by_index():
    split = MemorySplit(IMAGES, LABELS)
    images, labels = split.load(torch.tensor([3, 0, 3]))
    assert torch.equal(images, IMAGES[[3, 0, 3]]) and labels.tolist() == [1, 0, 1]
    assert isinstance(split, ImageSplit) and len(split) == 4 and split.shape == (1, 2, 3)
    assert split.exact.tolist() == [True] * 4
    assert split.load(torch.tensor([], dtype=torch.int64))[0].shape == (0, 1, 2, 3)
    images.zero_()
    assert torch.equal(split.load(torch.tensor([3]))[0], IMAGES[3:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES.float(), LABELS), r"images: expected uint8 .* got float32 \[4, 1, 2, 3\]"),
        ((IMAGES[0], LABELS), "images: expected uint8"),
        ((IMAGES[:, :0], LABELS), "images: expected uint8"),
        ((IMAGES[:3], LABELS), r"images: expected one per label \(4\), got 3"),
        ((IMAGES, LABELS.int()), "labels: expected int64"),
        ((IMAGES, LABELS - 1), "labels: expected none below 0, got -1"),
        ((IMAGES[:0], LABELS[:0]), "at least one image"),
        ((IMAGES, LABELS, torch.ones(4)), "exact: expected bool"),
        ((IMAGES, LABELS, torch.ones(3, dtype=torch.bool)), "exact: expected bool"),
    ],
)
def test_a_split_checks_what_it_is_given(arguments, message):
    with pytest.raises(DataError, match=message):
        MemorySplit(*arguments)


@pytest.mark.parametrize("indices", [torch.tensor([4]), torch.tensor([0, -1]), torch.tensor([1.0]), LABELS[None]])
def test_indices_must_be_in_range(indices):
    with pytest.raises(DataError, match="indices: expected"):
        MemorySplit(IMAGES, LABELS).load(indices)


def test_a_subset_shows_some_images_in_its_own_order():
    split = MemorySplit(IMAGES, LABELS, torch.tensor([True, False, True, True]))
    subset = Subset(split, torch.tensor([3, 1]))
    images, labels = subset.load(torch.tensor([1, 0, 1]))
    assert torch.equal(images, IMAGES[[1, 3, 1]]) and labels.tolist() == [1, 1, 1]
    assert len(subset) == 2 and subset.shape == split.shape and subset.exact.tolist() == [True, False]
    with pytest.raises(DataError, match=r"indices: expected 0\.\.1, got 2\.\.2"):
        subset.load(torch.tensor([2]))
    with pytest.raises(DataError, match=r"indices: expected 0\.\.3, got 0\.\.4"):
        Subset(split, torch.tensor([0, 4]))
    with pytest.raises(DataError, match="at least one image"):
        Subset(split, torch.tensor([], dtype=torch.int64))


def test_a_dataset_checks_labels_and_shapes():
    split = MemorySplit(IMAGES, LABELS)
    dataset = Dataset("toy", split, split, ("a", "b", "c"))
    assert dataset.num_classes == 3 and dataset.shape == (1, 2, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"
    with pytest.raises(DataError, match=r"toy train labels: expected 0\.\.1, got 2"):
        Dataset("toy", split, split, ("a", "b"))
    with pytest.raises(DataError, match="one shape"):
        Dataset("toy", split, MemorySplit(IMAGES[:, :, :1], LABELS), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("mnist",), {}, "dataset: expected one of digits, cifar10, imagefolder, hf, got 'mnist'"),
        (("digits",), {"download": True}, "only cifar10 can be fetched"),
        (("cifar10", "x"), {"image_size": 32}, "only imagefolder and hf take one"),
        (("cifar10",), {}, "data_dir: cifar10 needs"),
        (("imagefolder",), {}, "data_dir: imagefolder needs"),
        (("hf",), {}, "data_dir: hf needs"),
    ],
)
def test_load_dataset_refuses_what_makes_no_sense(arguments, options, message):
    with pytest.raises(DataError, match=message):
        load_dataset(*arguments, **options)


def test_digits():
    digits = load_dataset("digits")
    assert digits.name in DATASETS and digits.shape == (1, 8, 8) and digits.classes == tuple("0123456789")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    pixels = torch.cat([digits.train.pixels, digits.test.pixels])
    assert pixels.unique().tolist() == [round(v * 255 / 16) for v in range(17)]
    assert digits.test.labels.bincount().min() >= 34  # stratified: 360 images of ten classes
    again = load_dataset("digits")
    assert torch.equal(again.train.pixels, digits.train.pixels)
    assert torch.equal(again.test.labels, digits.test.labels)


def test_digits_say_when_scikit_learn_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        load_dataset("digits")
