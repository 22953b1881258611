"""Random parts of photographs: their law, the pixels that come of them, and where there can be none."""

import json
import os
import signal
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from cdn.commands import train
from cdn.data import Augmentation, Batches, Subset, load_dataset
from cdn.data.imagefolder import FolderSplit
from cdn.data.parts import ATTEMPTS, RATIO, Part, draw_parts
from cdn.errors import CDNError, DataError
from cdn.images.decoder import ORIENTATION
from cdn.run_folder.state import load_state
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer


def boxes(width, height, least, count=2000):
    return torch.tensor([part.box(width, height) for part in draw_parts(count, 0, 0, least)], dtype=torch.float64)


def test_shares_and_ratios_are_those_of_the_law():
    left, top, right, bottom = boxes(1000, 1000, 0.1).T
    across, down = right - left, bottom - top
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 1000 and bottom.max() <= 1000
    share, stretch = across * down / 1e6, (across / down).log()
    limit = torch.tensor(RATIO).log()
    assert 0.099 < share.min() < 0.11 and share.max() > 0.97
    # Among small parts, all of which fit, shares, ratios and places are uniform: compared by means of some hundreds.
    small = share < 0.5
    assert share[small].mean() == pytest.approx(0.3, abs=0.02)
    assert stretch.abs().max() < limit + 0.01 and stretch[small].mean() == pytest.approx(0, abs=0.03)
    assert stretch[small].var().sqrt() == pytest.approx(float(limit / 3**0.5), rel=0.1)
    for start, length in ((left, across), (top, down)):
        assert (start / (1000 - length + 1))[small].mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("width, height", [(1000, 10), (10, 1000), (1, 1), (3, 2), (640, 480)])
def test_parts_lie_inside_of_any_image(width, height):
    left, top, right, bottom = boxes(width, height, 0.05, 300).T
    assert ((left >= 0) & (top >= 0) & (right <= width) & (bottom <= height)).all()
    assert ((right > left) & (bottom > top)).all()


def test_where_no_draw_fits_it_is_the_centre():
    never = Part(1.0, [(0.5, 1.0, 0.5, 0.5)] * ATTEMPTS)  # all of the area, at a ratio that a square has not
    assert never.box(300, 300) == (0, 0, 300, 300)
    assert never.box(1000, 30) == (480, 0, 520, 30) and never.box(30, 1000) == (0, 480, 30, 520)


def test_draws_depend_on_seed_step_and_place_alone():
    first = draw_parts(8, 3, 5, 0.2)
    assert first == draw_parts(8, 3, 5, 0.2) and len({part.box(500, 500) for part in first}) == 8
    assert first[0] not in draw_parts(8, 3, 6, 0.2) and first[0] not in draw_parts(8, 4, 5, 0.2)


def seen(path, size, part=None):
    """Return the image of a file, or a part of it, as folders of images give it: uint8 [size, size, 3]."""
    split, first = FolderSplit([path], torch.zeros(1, dtype=torch.int64), size), torch.tensor([0])
    images = split.load(first)[0] if part is None else split.load_parts(first, [part])
    return images[0].permute(1, 2, 0).numpy()


def smooth(width, height):
    """Return an image whose pixels tell where they are."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 127 + 0 * x], axis=-1).astype(np.uint8))


def test_pixels_are_those_of_the_part(tmp_path):
    image = smooth(40, 30)
    image.save(tmp_path / "a.png")
    for part in draw_parts(5, 0, 0, 0.3):
        expected = image.crop(part.box(40, 30)).resize((16, 16), Image.Resampling.BICUBIC)
        assert np.array_equal(seen(tmp_path / "a.png", 16, part), np.asarray(expected))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_photograph_is_decoded_in_part_of_its_pixels(tmp_path, orientation):
    image, path = smooth(1600, 1200), tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, quality=95, exif=exif)
    upright = image if orientation == 1 else image.transpose(Image.Transpose.ROTATE_270)
    for part in draw_parts(6, 0, 0, 0.2):
        expected = upright.resize((32, 32), Image.Resampling.BICUBIC, box=part.box(*upright.size))
        found = seen(path, 32, part)
        # Borders are rounded to pixels of the smaller image.
        assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 3
        assert part.enough(32, *image.size) < 400


def test_parts_of_a_smaller_training_set_are_those_of_its_images(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(path)
    split = Subset(FolderSplit(paths, torch.zeros(4, dtype=torch.int64), 6), torch.tensor([3, 1]))
    found = split.load_parts(torch.tensor([1, 0]), draw_parts(2, 0, 0, 0.5))
    assert found.shape == (2, 3, 6, 6) and found[:, 0, 0, 0].tolist() == [1, 3]
    with pytest.raises(DataError, match=r"indices: expected 0\.\.1"):
        split.load_parts(torch.tensor([2]), draw_parts(1, 0, 0, 0.5))


def test_whole_squares_are_their_own_parts(tmp_path):
    path = tmp_path / "a.png"
    smooth(12, 12).save(path)
    whole = seen(path, 12)
    parts = [part for part in draw_parts(50, 0, 0, 1.0) if part.box(12, 12) == (0, 0, 12, 12)]
    assert len(parts) > 25 and np.array_equal(seen(path, 12, parts[0]), whole)


@pytest.mark.usefixtures("blank_pictures")
def test_a_training_on_parts_goes_on_as_if_it_had_not_stopped(tmp_path):
    for split, count in (("train", 12), ("val", 4)):
        for number in range(count):
            path = tmp_path / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            smooth(20 + number, 16).save(path)
    tiny = "--model gradresnet-small --width 8 --batch-size 4 --log-every 2 --evaluations 1 --workers 0 --device cpu"
    data = ["--data", "imagefolder", "--data-dir", str(tmp_path), "--image-size", "8", "--crop-padding", "0"]
    start = lambda name, *more: train.main([*tiny.split(), *data, "--out", str(tmp_path / name), *more])
    start("whole", "--steps", "4", "--crop-area", "0.3", "--profile")
    phases = json.loads((tmp_path / "whole/profile.json").read_text())["phases"]
    assert {"waiting", "data", "step"} <= {row["phase"] for row in phases}
    with mock.patch.object(Trainer, "take", stop_after(2)):
        start("halted", "--steps", "4", "--crop-area", "0.3")
    train.main(["--resume", str(tmp_path / "halted")])
    whole, halted = load_state(tmp_path / "whole"), load_state(tmp_path / "halted")
    assert all(torch.equal(value, whole["model"][name]) for name, value in halted["model"].items())
    start("uncut", "--steps", "4")
    assert any(not torch.equal(v, whole["model"][name]) for name, v in load_state(tmp_path / "uncut")["model"].items())
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["waiting"] < 1 for row in rows if row["kind"] == "train")


def stop_after(steps):
    """Return Trainer.take, which asks the process to end after so many steps."""
    take = Trainer.take

    def taken(trainer):
        if trainer.step + 1 == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(trainer)

    return taken


def test_images_in_memory_have_no_parts():
    digits = load_dataset("digits").train
    with pytest.raises(DataError, match="crop_area: parts are cut out of image files while these are decoded"):
        Batches(digits, 4, 0, torch.device("cpu"), Augmentation(digits.shape), crop_area=0.5)


@pytest.mark.parametrize("area", [0.0, -0.1, 1.5])
def test_shares_that_are_none_are_refused(area):
    with pytest.raises(CDNError, match="--crop-area: expected a share of the image above 0 and at most 1, got"):
        Settings(crop_area=area)
