"""The side of the squares of an image folder, where no one gave it: told, or refused, and recorded with the run."""

import json

import numpy as np
import pytest
from PIL import Image

from cdn.commands import train
from cdn.data import load_dataset
from cdn.errors import DataError
from cdn.run_folder.opened import open_run


@pytest.fixture
def folder(tmp_path):
    """Return a function that makes an image folder of images (height, width), train and val in turn."""

    def make(*sizes):
        for number, size in enumerate(sizes):
            path = tmp_path / "data" / ("train", "val")[number % 2] / "any" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return tmp_path / "data"

    return make


@pytest.mark.parametrize("sizes", [[(6, 6), (6, 6)], [(6, 9), (12, 6), (6, 6), (6, 7)]])
def test_a_size_that_all_have_is_taken_and_told(folder, sizes):
    data_dir = folder(*sizes)
    with pytest.warns(UserWarning, match=r"data: images are taken as squares of 6x6 pixels, .*--image-size") as told:
        assert load_dataset("imagefolder", data_dir).shape == (3, 6, 6)
    assert len(told) == 1


@pytest.mark.parametrize("sizes", [[(6, 6), (6, 6), (7, 7)], [(6, 6), (5, 6)], [(6, 6)] * 9 + [(8, 8)]])
def test_different_sizes_need_the_option(folder, sizes):
    data_dir = folder(*sizes)
    cause = rf"{len(sizes) - 1}.png: its shorter side has . pixels, that of .*0.png 6: .*--image-size"
    with pytest.raises(DataError, match=cause):
        load_dataset("imagefolder", data_dir)
    assert load_dataset("imagefolder", data_dir, image_size=6).shape == (3, 6, 6)


def test_photographs_as_cameras_make_them_need_the_option(folder):
    data_dir = folder((300, 400), (300, 400))
    with pytest.raises(DataError, match="0.png: its shorter side has 300 pixels: .* above 256 .*--image-size"):
        load_dataset("imagefolder", data_dir)
    assert load_dataset("imagefolder", data_dir, image_size=300).shape == (3, 300, 300)


def test_given_sizes_are_taken_in_silence_and_need_no_look_at_the_files(folder, recwarn):
    data_dir = folder((6, 6), (6, 6))
    for path in data_dir.rglob("*.png"):
        path.write_bytes(b"")
    assert load_dataset("imagefolder", data_dir, image_size=4).shape == (3, 4, 4)
    assert not recwarn.list


def options(run, data_dir):
    return [
        *("--out", str(run), "--data", "imagefolder", "--data-dir", str(data_dir), "--device", "cpu"),
        *("--model", "resnet-small", "--width", "8", "--batch-size", "2", "--crop-padding", "0"),
        *("--steps", "1", "--evaluations", "1", "--mean", "0.5"),
    ]


def test_what_was_taken_is_recorded(folder, tmp_path, recwarn):
    """A run and its measurements go on with the size of its training, whatever images come later."""
    run, data_dir = tmp_path / "run", folder(*[(8, 8)] * 8)
    train.main(options(run, data_dir))
    assert sum("squares of 8x8" in str(warning.message) for warning in recwarn.list) == 1
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["image_size"] == config["training"]["image_size"] == 8
    recwarn.clear()
    train.main(["--resume", str(run)])
    other = data_dir / "val" / "any" / "0.png"
    Image.new("RGB", (20, 16), (1, 2, 3)).save(other)
    assert open_run(run).dataset.shape == (3, 8, 8)
    assert not [warning for warning in recwarn.list if "squares" in str(warning.message)]


def test_runs_that_did_not_record_it_are_read_and_resumed(folder, tmp_path, recwarn):
    run, data_dir = tmp_path / "run", folder((8, 8), (9, 9), *[(10, 8)] * 6)
    train.main([*options(run, data_dir), "--image-size", "8"])
    config = json.loads((run / "config.json").read_text())
    config["data"]["image_size"] = config["training"]["image_size"] = None  # as older versions wrote
    (run / "config.json").write_text(json.dumps(config))
    assert open_run(run).dataset.shape == (3, 8, 8)
    train.main(["--resume", str(run)])
    assert not [warning for warning in recwarn.list if "squares" in str(warning.message)]
