"""Images of one's own, given in Python: read, trained on, resumed; and a sentence where they are none."""

import numpy as np
import pytest
import torch
from PIL import Image

from cdn.data import load_dataset, own_dataset
from cdn.errors import CDNError, DataError
from cdn.run_folder.opened import open_run
from cdn.run_folder.state import load_state
from cdn.training.loop import train
from cdn.training.settings import Settings

CPU = torch.device("cpu")


class Items:
    """A map-style data set."""

    def __init__(self, images, labels):
        self.images, self.numbers = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.numbers[index]


def pixels(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


FORMS = {
    "Pillow": (Image.fromarray, (8, 8, 3), 3),
    "grey Pillow": (Image.fromarray, (8, 8), 1),
    "array": (lambda image: image, (8, 8, 3), 3),
    "grey array": (lambda image: image, (8, 8), 1),
    "array of one channel": (lambda image: image, (8, 8, 1), 1),
    "tensor": (lambda image: torch.from_numpy(image).movedim(-1, 0), (8, 8, 3), 3),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_of_all_forms_keep_their_pixels(form):
    made, shape, channels = FORMS[form]
    raw = pixels(4, shape)
    items = Items([made(image) for image in raw], [0, 2, 1, 0])
    data = own_dataset(items, items)
    images, labels = data.train.load(torch.tensor([2, 0]))
    expected = torch.from_numpy(raw).reshape(4, 8, 8, channels).permute(0, 3, 1, 2)[[2, 0]]
    assert torch.equal(images, expected) and labels.tolist() == [1, 0]
    assert data.classes == ("0", "1", "2") and data.shape == (channels, 8, 8)
    small = own_dataset(items, items, ["a", "b", "c"], image_size=4)
    assert small.shape == (channels, 4, 4) and small.classes == ("a", "b", "c")


def test_labels_and_names_are_taken_from_where_torchvision_has_them():
    class Named(Items):
        targets, classes = [1, 0, 1], ["cat", "dog"]

        def __getitem__(self, index):
            if index:
                raise AssertionError("read without need")
            return super().__getitem__(index)

    items = Named(list(pixels(3, (8, 8))), [0] * 3)
    data = own_dataset(items, items)
    assert data.classes == ("cat", "dog") and data.train.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "train, message",
    [
        (3, "train: expected a data set with a length that gives .image, label. by index, got int"),
        (Items([np.zeros((4, 4), np.uint8)], ["cat"]), "train: expected a data set .* got Items: ValueError"),
        (Items([np.zeros((4, 4))], [0]), r"train, image 0: expected a Pillow image, or uint8 .* got float64 \[4, 4\]"),
        (Items([], []), "train"),
        *(
            (
                Items([Image.new(mode, (4, 4))], [0]),
                f"train, image 0: expected a Pillow image of mode L or RGB, got {mode}",
            )
            for mode in ("RGBA", "I;16", "P")
        ),
    ],
)
def test_what_is_no_data_set_is_refused(train, message):
    with pytest.raises(DataError, match=message):
        own_dataset(train, train)


def test_images_of_other_sizes_are_refused_when_they_are_met():
    items = Items([np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)], [0, 1])
    data = own_dataset(items, items)
    with pytest.raises(DataError, match="train, image 1: has 4x5 pixels and others 4x4: say with image_size"):
        data.train.load(torch.tensor([1]))


@pytest.mark.usefixtures("blank_pictures")
def test_they_are_trained_on_and_a_run_goes_on_with_them(tmp_path):
    items = Items(list(pixels(24, (8, 8, 3))), [number % 3 for number in range(24)])
    data = own_dataset(items, items)
    tiny = dict(data="own", model="gradresnet-small", width=8, batch_size=4, steps=4, evaluations=1, workers=0)
    report = train(Settings(**tiny), tmp_path / "run", CPU, dataset=data, show=False)
    assert report["accuracy"] is not None and load_state(tmp_path / "run")["step"] == 4
    again = train(Settings(**tiny), tmp_path / "run", CPU, dataset=data, show=False, resume=True)
    assert again["accuracy"] == report["accuracy"]
    fewer = own_dataset(Items(items.images[:20], items.numbers[:20]), items)
    with pytest.raises(DataError, match="the data is not that of its start"):
        train(Settings(**tiny), tmp_path / "run", CPU, dataset=fewer, show=False, resume=True)
    with pytest.raises(DataError, match="own: its images were given in Python, and no command can read them"):
        open_run(tmp_path / "run").dataset  # noqa: B018
    with pytest.raises(CDNError, match="dataset: expected the 'own' that settings.data names, got 'digits'"):
        train(Settings(**tiny), tmp_path / "other", CPU, dataset=load_dataset("digits"), show=False)


def test_what_cannot_be_sent_to_workers_is_a_sentence(tmp_path):
    items = Items(list(pixels(8, (8, 8, 3))), [0, 1] * 4)
    items.open = lambda: None  # no process can be sent this
    tiny = dict(data="own", model="gradresnet-small", width=8, batch_size=4, steps=1, evaluations=1, workers=1)
    with pytest.raises(DataError, match=r"workers: the images cannot be read by other processes.* \(--workers 0\)"):
        train(Settings(**tiny), tmp_path / "run", CPU, dataset=own_dataset(items, items), show=False)
