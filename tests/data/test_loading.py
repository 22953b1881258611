"""Batches that workers read ahead: the same images whatever they do, and a sentence where they cannot go on."""

import functools
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from cdn.data import Augmentation, Batches, decoded, load_dataset
from cdn.data.imagefolder import FolderSplit
from cdn.data.loading import MOST_UNASKED, Loader, Wanted, workers_for
from cdn.data.sampler import batch_indices
from cdn.errors import DataError

COUNT, BATCH = 12, 4


def indices(step):
    return batch_indices(COUNT, BATCH, step, seed=0)


def wanted(step):
    return Wanted(indices(step))


@pytest.fixture
def split(tmp_path, monkeypatch):
    """A split of images that are not kept, each with pixels of its own."""
    monkeypatch.setattr(decoded, "CACHE_BYTES", 0)
    paths = [tmp_path / f"{number}.png" for number in range(COUNT)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return FolderSplit(paths, torch.zeros(COUNT, dtype=torch.int64), 6)


def workers_of(loader):
    return loader._coming._workers


def test_workers_are_only_for_what_is_read_anew_in_every_epoch(split, tmp_path, monkeypatch):
    assert workers_for(split) == min(MOST_UNASKED, os.cpu_count())
    monkeypatch.setattr(decoded, "CACHE_BYTES", 2**30)
    kept = FolderSplit(split.paths, split.labels, 6)
    assert workers_for(kept) == 0 and workers_for(kept, in_parts=True) == min(MOST_UNASKED, os.cpu_count())
    assert workers_for(load_dataset("digits").train) == 0


def test_without_workers_images_are_read_when_asked_for(split):
    loader = Loader(split, wanted)
    for step in (0, 5, 1):
        assert torch.equal(loader.read(step), split.load(indices(step))[0])


def test_a_worker_reads_the_same_images_in_any_order_of_steps(split):
    torch.rand(1000, 1000) @ torch.rand(1000, 1000)  # the threads of OpenMP have run before workers begin
    loader = Loader(split, wanted, workers=1)
    for step in (0, 1, 2, 7, 8, 2):
        assert torch.equal(loader.read(step), split.load(indices(step))[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # as many as asked for, on a machine with fewer cores
@pytest.mark.parametrize("workers", [2, 4])
def test_many_workers_read_the_same_images(split, workers):
    loader = Loader(split, wanted, workers)
    for step in range(3 * workers):
        assert torch.equal(loader.read(step), split.load(indices(step))[0])


@pytest.mark.slow
def test_an_image_that_cannot_be_decoded_is_a_sentence_and_reading_goes_on(split):
    broken = int(indices(2)[0])
    content = split.paths[broken].read_bytes()
    split.paths[broken].write_bytes(content[:-30])
    loader = Loader(split, wanted, workers=2)
    for step in (0, 1):
        loader.read(step)
    with pytest.raises(DataError, match=rf"^.*{broken}\.png: expected a readable image, got OSError: [^\n]*$"):
        loader.read(2)
    split.paths[broken].write_bytes(content)
    assert torch.equal(loader.read(2), split.load(indices(2))[0])


@pytest.mark.slow
def test_a_worker_that_dies_is_a_sentence_and_reading_goes_on(split):
    loader = Loader(split, functools.partial(wanted), workers=1)
    loader.read(0)
    for worker in workers_of(loader):
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    with pytest.raises(DataError, match=r"^a worker that reads images has ended: [^\n]*$"):
        for step in range(1, 9):  # what it had read before is still taken
            loader.read(step)
    assert torch.equal(loader.read(1), split.load(indices(1))[0])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        ConnectionResetError(104, "Connection reset by peer"),
        ConnectionRefusedError(111, "Connection refused"),
        OSError("got end of file during message"),
        EOFError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_worker_that_dies_as_its_images_are_fetched_is_a_sentence_and_reading_goes_on(split, error):
    def failing():
        raise error
        yield

    loader = Loader(split, wanted, workers=1)
    loader._next, loader._coming = 1, failing()
    with pytest.raises(DataError, match=r"^a worker that reads images has ended: [^\n]+$"):
        loader.read(1)
    assert torch.equal(loader.read(1), split.load(indices(1))[0])


@pytest.mark.slow
def test_ctrl_c_leaves_workers_alone(split):
    loader = Loader(split, wanted, workers=1)
    loader.read(0)
    for worker in workers_of(loader):
        os.kill(worker.pid, signal.SIGINT)
    for step in range(1, 6):
        assert torch.equal(loader.read(step), split.load(indices(step))[0])


@pytest.mark.parametrize("crop_area", [None, 0.2])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batches_are_the_same_for_any_number_of_workers(split, workers, crop_area):
    still = Augmentation(split.shape, crop_padding=1, flip=True)
    made = lambda places, workers: Batches(split, BATCH, 0, torch.device("cpu"), still, places, workers, crop_area)
    whole, parts = made(None, 0), [made(range(1), workers), made(range(1, BATCH), workers)]
    for step in (0, 1, 5):
        for batches in (whole, *parts):
            batches.seek(step)
        images, labels = whole.read()
        found = [batches.read() for batches in parts]
        assert torch.equal(torch.cat([x for x, _ in found]), images)
        assert torch.equal(torch.cat([label for _, label in found]), labels)
