"""CIFAR-10 in strips of WebP: the images of the official files, and one clear error per defect."""

import numpy as np
import pytest
import torch
from PIL import Image

from cdn.data import load_dataset
from cdn.data.cifar10_strips import read_strips
from cdn.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Write strips of 3 and 2 training images and one of 2 test images; return their folder and all training images."""
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    for name, part in (("train_000", images[:3]), ("train_001", images[3:]), ("test_000", images[:2])):
        Image.fromarray(part.reshape(-1, 32, 3)).save(tmp_path / f"{name}.webp", lossless=True)
    np.save(tmp_path / "train_labels.npy", np.array([3, 1, 9, 0, 2, 7], dtype=np.uint8))
    np.save(tmp_path / "test_labels.npy", np.array([4, 5], dtype=np.uint8))
    np.save(tmp_path / "train_inexact.npy", np.array([1, 4000]))
    return tmp_path


def test_strips_hold_the_images_in_order(folder):
    data = load_dataset("cifar10", folder)
    expected = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    images, labels = data.train.load(torch.arange(5))
    assert np.array_equal(images.numpy(), expected) and labels.tolist() == [3, 1, 9, 0, 2]
    assert data.classes[3] == "cat" and len(data.test) == 2
    assert data.train.exact.tolist() == [True, False, True, True, True] and data.test.exact.all()


def remove(name):
    return lambda folder: (folder / name).unlink()


def save(name, array):
    return lambda folder: np.save(folder / name, array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("train_000.webp"), "train_000.webp: expected a strip"),
        (remove("test_000.webp"), "test_000.webp: expected a strip"),
        (remove("train_labels.npy"), "train_labels.npy: expected the labels"),
        (save("train_labels.npy", np.zeros(4, int)), "a label for each of 5 images, got 4"),
        (save("train_labels.npy", np.array([0, 1, 2, 10, 3])), r"labels 0\.\.9, got 10 in image 3"),
        (save("train_labels.npy", np.zeros(5)), "one-dimensional array of integers"),
        (lambda f: (f / "train_001.webp").write_bytes(b"RIFF"), "train_001.webp: expected a readable image"),
        (lambda f: Image.new("RGB", (31, 64)).save(f / "train_001.webp"), "32x32 pixels .* got 31x64"),
    ],
)
def test_defects_get_one_clear_error(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        load_dataset("cifar10", folder)


def test_the_real_strips_are_read(shared_data):
    images, labels = read_strips(shared_data / "cifar10", "test")
    assert images.shape == (10_000, 3072) and np.bincount(labels).tolist() == [1000] * 10
    mean = images.reshape(-1, 3, 1024).mean((0, 2)) / 255
    assert mean == pytest.approx([0.4942, 0.4851, 0.4504], abs=2e-4)
