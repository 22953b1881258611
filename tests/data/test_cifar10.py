"""CIFAR-10 in its binary layout: reading, the inexact images, and one clear error per defect."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from cdn.data import load_dataset
from cdn.errors import DataError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def records(labels, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pixels], axis=1)


@pytest.fixture
def batches(tmp_path):
    """Write two train batches of 3 and 2 images and 2 test images; return their folder."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, labels in (("data_batch_1", [0, 9, 4]), ("data_batch_2", [1, 2]), ("test_batch", [7, 8])):
        (folder / f"{name}.bin").write_bytes(records(labels).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder


def load(folder):
    return load_dataset("cifar10", folder)


@pytest.mark.parametrize("levels_up", [0, 1])
def test_batches_are_read_in_order(batches, levels_up):
    data = load([batches, batches.parent][levels_up])
    assert data.classes == tuple(NAMES) and data.shape == (3, 32, 32)
    assert data.train.labels.tolist() == [0, 9, 4, 1, 2] and data.test.labels.tolist() == [7, 8]
    images, labels = data.train.load(torch.tensor([2, 3]))
    expected = np.stack([records([0, 9, 4])[2, 1:], records([1, 2])[0, 1:]]).reshape(2, 3, 32, 32)
    assert np.array_equal(images.numpy(), expected) and labels.tolist() == [4, 1]
    assert data.train.exact.all() and data.test.exact.all()


@pytest.mark.parametrize("levels_up", [0, 1])
def test_inexact_images_are_marked(batches, levels_up):
    place = [batches, batches.parent][levels_up]
    np.save(place / "train_inexact.npy", np.array([1, 4, 700], dtype=np.int32))
    np.save(place / "test_inexact.npy", np.array([], dtype=np.int64))
    for data in (load(batches), load(batches.parent)):
        assert data.train.exact.tolist() == [True, False, True, True, False]
        assert data.test.exact.all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([-1]), "at least 0, got -1"),
        (np.array([0.5]), "integers"),
        (np.zeros((1, 1), int), "integers"),
        (np.array([{}], dtype=object), "ValueError"),
    ],
)
def test_a_bad_list_of_inexact_images_is_named(batches, array, message):
    np.save(batches / "test_inexact.npy", array)
    with pytest.raises(DataError, match=f"test_inexact.npy: .*{message}"):
        load(batches)


def test_a_garbled_list_of_inexact_images_is_named(batches):
    (batches / "train_inexact.npy").write_bytes(b"\x93NUMPY\x01\x00\xff")
    with pytest.raises(DataError, match="train_inexact.npy"):
        load(batches)


@pytest.mark.parametrize("size", [0, 1, 3072, 3073 * 2 - 1])
@pytest.mark.parametrize("name", ["data_batch_2.bin", "test_batch.bin"])
def test_a_batch_is_whole_records(batches, name, size):
    (batches / name).write_bytes(bytes(size))
    with pytest.raises(DataError, match=f"{name}: expected whole records of 3073 bytes, got {size} bytes"):
        load(batches)


def test_a_label_out_of_range_is_named(batches):
    (batches / "data_batch_2.bin").write_bytes(records([3, 255]).tobytes())
    with pytest.raises(DataError, match=r"data_batch_2.bin: expected labels 0\.\.9, got 255 in image 1"):
        load(batches)


@pytest.mark.parametrize("name", ["data_batch_1.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_missing_file_is_named(batches, name):
    (batches / name).unlink()
    with pytest.raises(DataError, match=f"{name}: expected .* found no such file"):
        load(batches)


def test_a_gap_between_the_batches_is_refused(batches):
    (batches / "data_batch_2.bin").rename(batches / "data_batch_4.bin")
    with pytest.raises(DataError, match="data_batch_2.bin: .* no such file"):
        load(batches)


@pytest.mark.parametrize("text", [b"cat\ndog\n", b"\xff\xfe"])
def test_the_class_names_are_checked(batches, text):
    (batches / "batches.meta.txt").write_bytes(text)
    with pytest.raises(DataError, match="batches.meta.txt: expected"):
        load(batches)


def test_an_empty_folder_says_how_to_go_on(tmp_path):
    with pytest.raises(DataError, match=r"found none: .*cifar-10-binary\.tar\.gz there and run: tar -xzf"):
        load(tmp_path)


def test_real_images(shared_data, tmp_path):
    script = shared_data / "unpack_cifar10.py"
    if not script.is_file():
        pytest.skip(f"no {script}")
    subprocess.run(
        [sys.executable, script, tmp_path, "--train", "1000", "--test", "500"], check=True, capture_output=True
    )
    data = load(tmp_path)
    assert (len(data.train), len(data.test), data.classes) == (1000, 500, tuple(NAMES))
    assert np.array_equal(data.train.labels.numpy(), np.load(shared_data / "cifar10/train_labels.npy")[:1000])
    # The published channel means of CIFAR-10: planes in the wrong order would not meet them.
    means = data.train.pixels.float().mean(dim=(0, 2, 3)) / 255
    assert torch.allclose(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.02)
