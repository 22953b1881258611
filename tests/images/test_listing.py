"""What lies beside images in folders is skipped and counted; an image that cannot be read stays an error."""

import os
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from cdn.cli.process import run_command
from cdn.data import load_dataset
from cdn.errors import DataError
from cdn.images.image_files import find_images
from cdn.methods.detection.outlier_sets import read_outliers

STRAYS = ("Thumbs.db", "desktop.ini", "README.txt", ".DS_Store", "._a.png", "labels.csv", "LICENSE", "clip.gif")
LEVELS = ("train", "val", "train/cat", "val/dog")


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for value, name in enumerate(("train/cat/a.png", "train/cat/b.bmp", "train/dog/a.png", "val/dog/c.png")):
        save(tmp_path / name, value)
    return tmp_path


def values(split):
    return split.load(torch.arange(len(split)))[0][:, 0, 0, 0].tolist()


def load(folder):
    return load_dataset("imagefolder", folder, image_size=6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_file_changes_nothing_and_is_told(folder, level, stray):
    (folder / level / stray).write_text("no image")
    with pytest.warns(
        UserWarning, match=r"skipped 1 entry that is no image: 1 (hidden|\.\w+|without a suffix)$"
    ) as told:
        data = load(folder)
    assert len(told) == 1 and data.classes == ("cat", "dog")
    assert values(data.train) == [0, 1, 2] and values(data.test) == [3]
    assert data.train.labels.tolist() == [0, 0, 1] and data.test.labels.tolist() == [1]


def test_all_are_counted_in_one_line(folder):
    for level in LEVELS:
        for stray in STRAYS:
            (folder / level / stray).touch()
    for empty in ("train/empty", "val/empty", "train/cat/notes"):
        (folder / empty).mkdir()
    (folder / "train/empty/readme.md").touch()
    with pytest.warns(UserWarning) as told:
        load(folder)
    (line,) = (str(warning.message) for warning in told)
    assert line.startswith(
        f"{folder}: skipped 35 entries that are no images: 8 hidden, 4 .csv, 4 .db, 4 .gif, 4 .ini, 4 .txt"
    )
    assert "4 without a suffix" in line and "\n" not in line
    for empty in ("train/empty", "val/empty", "train/cat/notes"):
        assert f"the folder {folder / empty}" in line


def test_many_kinds_of_strays_make_no_long_line(folder):
    for number in range(500):
        (folder / "train" / "cat" / f"file.{number:03}").touch()
    with pytest.warns(UserWarning, match="skipped 500 entries that are no images: .* and more$") as told:
        load(folder)
    assert len(str(told[0].message)) < 300


def test_folders_without_strays_are_read_in_silence(folder, recwarn):
    load(folder)
    find_images(folder / "train" / "cat")
    assert not recwarn.list


@pytest.mark.parametrize("broken", [b"", b"no image"])
def test_a_damaged_file_with_the_suffix_of_an_image_stays_an_error(folder, broken):
    (folder / "train/cat/broken.JPG").write_bytes(broken)
    with pytest.raises(DataError, match="train/cat/broken.JPG"):
        values(load(folder).train)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("train/loose.png", "in the folder of a class"),
        ("val/loose.png", "in the folder of a class"),
        ("val/bird/a.png", "unknown 'bird'"),
        ("train/cat/more/a.png", "no folders of images"),
        ("train/cat/more/deeper/a.png", "no folders of images"),
        ("train/more/deeper/a.png", "no folders of images"),
    ],
)
def test_images_that_would_be_lost_are_no_strays(folder, name, cause):
    save(folder / name)
    with pytest.raises(DataError, match=cause):
        load(folder)


@pytest.mark.parametrize("level", ["train/cat", "val/dog"])
def test_a_link_to_nowhere_named_as_an_image_stays_an_error(folder, level):
    (folder / level / "gone.png").symlink_to(folder / "nowhere")
    with pytest.raises(DataError, match="gone.png: expected an image file"):
        load(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_named_as_an_image_does_not_hang(folder):
    os.mkfifo(folder / "train/cat/pipe.png")
    with pytest.raises(DataError, match="pipe.png: expected an image file"):
        load(folder)
    with pytest.raises(DataError, match="pipe.png: expected an image file"):
        find_images(folder / "train/cat")


@pytest.mark.parametrize("reader", [find_images, lambda folder: read_outliers(folder, (3, 6, 6), 9)])
def test_plain_folders_of_images_go_by_the_same_rule(folder, reader):
    expected = len(reader(folder / "train" / "cat"))
    for stray in STRAYS:
        (folder / "train" / "cat" / stray).touch()
    (folder / "train" / "cat" / "masks.png").mkdir()
    with pytest.warns(UserWarning, match="skipped 9 entries that are no images") as told:
        assert len(reader(folder / "train" / "cat")) == expected == 2
    assert len(told) == 1


def test_commands_show_it_as_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # to be put back
    # What Python does with a warning, where pytest collects them.
    monkeypatch.setattr(
        warnings, "showwarning", lambda *warning: sys.stderr.write(warnings.formatwarning(*warning[:4]))
    )
    (folder / "train/cat/Thumbs.db").touch()
    with pytest.raises(SystemExit) as status:
        run_command(lambda: load(folder) and None)
    assert status.value.code == 0
    assert capsys.readouterr().err == f"note: {folder}: skipped 1 entry that is no image: 1 .db\n"
