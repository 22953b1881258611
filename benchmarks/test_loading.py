"""Images a training reads from a folder of photographs, beside torch's DataLoader over plain Pillow."""

from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cdn.data import Augmentation, Batches, decoded
from cdn.data.imagefolder import FolderSplit
from cdn.data.parts import draw_parts

PHOTOGRAPH = 500  # side
LEAST = 0.25  # the smallest share of a part


class Photographs(Dataset):
    """What one writes for torch's DataLoader: open, cut at random or in the middle, resize, to a tensor.

    Args:
        paths: the files.
        side: of the squares.
        parts: whether to cut at random.
    """

    def __init__(self, paths, side, parts):
        self.paths, self.side, self.parts = paths, side, parts

    def __len__(self):
        return 1 << 30  # as long as it is asked for

    def __getitem__(self, index):
        with Image.open(self.paths[index % len(self.paths)]) as file:
            image = file.convert("RGB")
        width, height = image.size
        edge = min(width, height)
        box = (width - edge) // 2, (height - edge) // 2, (width + edge) // 2, (height + edge) // 2
        if self.parts:
            (part,) = draw_parts(1, 0, index, LEAST)
            box = part.box(width, height)
        square = image.crop(box).resize((self.side, self.side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)


class OfLibrary:
    """Read some batches as a training does, each call the next ones."""

    def __init__(self, paths, side, parts, workers, batch, count):
        with mock.patch.object(decoded, "CACHE_BYTES", 0):  # as if there were too many to keep
            split = FolderSplit(paths, torch.zeros(len(paths), dtype=torch.int64), side)
        how = dict(workers=workers, crop_area=LEAST if parts else None)
        self.batches = Batches(split, batch, 0, torch.device("cpu"), Augmentation(split.shape), **how)
        self.count, self.step = count, 0

    def __call__(self):
        for _ in range(self.count):
            self.batches.seek(self.step)
            self.step += 1


class OfTorch:
    """Read as many by torch's loader."""

    def __init__(self, paths, side, parts, workers, batch, count):
        context = dict(multiprocessing_context="forkserver") if workers else {}
        data = Photographs(paths, side, parts)
        self.batches, self.count = iter(DataLoader(data, batch, num_workers=workers, **context)), count

    def __call__(self):
        for _ in range(self.count):
            self.images = next(self.batches)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """JPEG files of smooth noise, which take as long to decode as photographs do."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(64)]
    for path in paths:
        coarse = Image.fromarray(random.integers(0, 256, (60, 60, 3), dtype=np.uint8))
        fine = random.integers(-12, 13, (PHOTOGRAPH, PHOTOGRAPH, 3))
        smooth = np.asarray(coarse.resize((PHOTOGRAPH, PHOTOGRAPH), Image.Resampling.BICUBIC))
        Image.fromarray((smooth + fine).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


@pytest.mark.parametrize("parts", [False, pytest.param(True, marks=pytest.mark.no_smoke)], ids=["whole", "parts"])
@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.full), pytest.param(2, marks=pytest.mark.no_smoke)]
)
@pytest.mark.parametrize("side", [64, pytest.param(224, marks=pytest.mark.full)])
def test_loading(paired, settings, photographs, side, workers, parts):
    # Many more than workers have read ahead when their turn comes.
    batch, count = (2, 1) if settings.smoke else (32, 24 if workers else 4)
    how = photographs, side, parts, workers, batch, count
    paired(
        f"{count * batch} photographs of {PHOTOGRAPH}x{PHOTOGRAPH} to {side}x{side}, "
        f"{'random parts' if parts else 'whole'}, {workers} workers",
        ("this library", OfLibrary(*how)),
        {"(torch's DataLoader over Pillow)": OfTorch(*how)},
        memory=False,
        operation="loading",
        batch=count * batch,
        side=side,
        workers=workers,
        parts=parts,
    )
