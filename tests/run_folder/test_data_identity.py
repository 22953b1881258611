"""A run goes on with the data of its start, wherever that lies, and with no other."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from cdn.commands import train
from cdn.data import Dataset, differences, fingerprint
from cdn.data.split import MemorySplit
from cdn.errors import CDNError, DataError
from cdn.run_folder.config import read_config, write_config
from cdn.run_folder.names import DATA, PREVIOUS, STATE
from cdn.run_folder.state import load_state
from cdn.training.trainer import Trainer
from tests.frozen import freeze

TINY = ["--data", "imagefolder", "--image-size", "8", "--model", "resnet-small", "--width", "8", "--steps", "3"]
TINY += ["--batch-size", "4", "--crop-padding", "0", "--mean", "0", "--evaluations", "1", "--device", "cpu"]


def write_images(folder, count, seed=0):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with data and a run that was stopped after its first step, started with a relative path to the data."""
    place = tmp_path_factory.mktemp("begun")
    for split, count in (("train", 5), ("val", 2)):
        for seed, name in enumerate(("cat", "dog")):
            write_images(place / "data" / split / name, count, seed)
    with pytest.MonkeyPatch.context() as patch:
        stop_at_each_step(patch)
        patch.chdir(place)
        assert train.main([*TINY, "--data-dir", "data", "--out", "run"]) == 130
    return place


def stop_at_each_step(patch):
    take = Trainer.take

    def stop(self):
        signal.raise_signal(signal.SIGINT)
        return take(self)

    patch.setattr(Trainer, "take", stop)


@pytest.fixture
def place(begun, tmp_path, monkeypatch):
    """A copy of it, whose run knows the data of the copy, and takes one step each time that it is resumed."""
    copy = shutil.copytree(begun, tmp_path / "place")
    config = copy / "run" / "config.json"
    config.write_text(config.read_text().replace(str(begun), str(copy)))
    stop_at_each_step(monkeypatch)
    return copy


def resume(place, *options):
    """Resume the run for a step, and return how many it has done."""
    train.main(["--resume", str(place / "run"), *map(str, options)])
    return load_state(place / "run")["step"]


def test_it_goes_on_from_any_working_directory(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resume(place) == 2


def test_it_goes_on_with_the_same_data_elsewhere_and_remembers_where(place):
    (place / "data").rename(place / "moved")
    with pytest.raises(DataError, match=r"its data is not at .*data any more: say where it is with --data-dir"):
        resume(place)
    assert resume(place, "--data-dir", place / "moved") == 2
    config = read_config(place / "run")
    assert config.data["data_dir"] == config.training["data_dir"] == str(place / "moved")
    assert resume(place) == 3


def rename_class(data):
    for split in ("train", "val"):
        (data / split / "cat").rename(data / split / "zebra")


def add_image(data):
    shutil.copy(data / "train" / "dog" / "0.png", data / "train" / "dog" / "9.png")


def swap_classes(data):
    for name, target in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (data / "train" / name).rename(data / "train" / target)


def rename_image(data):
    (data / "train" / "dog" / "0.png").rename(data / "train" / "dog" / "9.png")


def change_image(data):
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(data / "train" / "dog" / "0.png")


def remove_test_image(data):
    (data / "val" / "cat" / "1.png").unlink()


CHANGES = {
    rename_class: r"classes 'zebra' where there were 'cat'",
    swap_classes: r"'cat' in train has other files; 'dog' in train has other files",
    add_image: r"6 images of 'dog' in train where there were 5",
    rename_image: r"'dog' in train has other files",
    change_image: r"'dog' in train has other files",
    remove_test_image: r"1 images of 'cat' in test where there were 2",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moved", [False, True])
def test_other_data_is_refused_by_what_differs(place, change, moved):
    data = place / "data"
    if moved:
        data = data.rename(place / "moved")
    change(data)
    before = {path: path.read_bytes() for path in (place / "run").iterdir()}
    with pytest.raises(DataError, match=CHANGES[change]) as error:
        resume(place, *(["--data-dir", data] if moved else []))
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in (place / "run").iterdir()} == before


def test_a_run_of_an_old_version_gets_a_fingerprint(place):
    (place / "run" / DATA).unlink()
    add_image(place / "data")
    with pytest.raises(DataError, match="11 images in train where there were 10"):
        resume(place)
    assert not (place / "run" / DATA).exists()
    (place / "data" / "train" / "dog" / "9.png").unlink()
    assert resume(place) == 2
    rename_image(place / "data")
    with pytest.raises(DataError, match="has other files"):
        resume(place)


def test_a_frozen_run_is_known_by_its_configuration(tmp_path):
    run = shutil.copytree(freeze.FOLDER / "0.1.0" / "joint", tmp_path / "run")
    config = read_config(run)
    config.classes[3] = "drei"
    write_config(run, config)
    with pytest.raises(DataError, match="classes '3' where there were 'drei'"):
        train.main(["--resume", str(run)])


def test_a_lost_state_does_not_start_the_run_again(place):
    os.replace(place / "run" / STATE, place / "run" / PREVIOUS)
    with pytest.raises(CDNError, match=rf"nothing to resume; the one before is whole: mv .*{PREVIOUS}"):
        resume(place)


def test_temporary_files_of_a_killed_training_go_when_it_is_resumed(place):
    left = [place / "run" / f".{name}.123.tmp" for name in (STATE, PREVIOUS, "model.safetensors", "curves.png")]
    for path in left:
        path.write_bytes(b"half")
    assert resume(place) == 2
    assert not any(path.exists() for path in left)


def memory(labels, classes=("a", "b"), shape=(1, 4, 4)):
    images = torch.zeros(len(labels), *shape, dtype=torch.uint8)
    return Dataset(
        "made", MemorySplit(images, torch.tensor(labels)), MemorySplit(images, torch.tensor(labels)), classes
    )


@pytest.mark.parametrize(
    "other, message",
    [
        (memory([0, 1, 1]), None),
        (memory([1, 0, 1]), "other labels, or another order, in train"),
        (memory([0, 0, 1]), "2 images of 'a' in train where there were 1"),
        (memory([0, 1, 1, 1]), "3 images of 'b' in train where there were 2"),
        (memory([0, 1, 1], ("a", "c")), "classes 'c' where there were 'b'"),
        (memory([0, 1, 1], shape=(1, 5, 4)), r"images of shape \[1, 5, 4\] where it was \[1, 4, 4\]"),
    ],
)
def test_images_in_memory_go_by_labels_order_and_shape(other, message):
    before = json.loads(json.dumps(fingerprint(memory([0, 1, 1]))))
    found = "; ".join(differences(before, fingerprint(other)))
    assert re.fullmatch(message, found.split("; ")[0]) if message else not found


def test_no_more_than_a_few_differences_are_named():
    classes = tuple("abcdefgh")
    before, now = (fingerprint(memory(list(range(8)) * times, classes)) for times in (1, 2))
    found = differences(before, now)
    assert len(found) == 4 and found[-1] == "and 13 more"
