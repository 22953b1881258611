"""Training from the weights of another run."""

import itertools
import json

import pytest
import torch
from PIL import Image

import cdn
from cdn.commands import train
from cdn.errors import CDNError
from cdn.run_folder.config import read_config
from cdn.training.initial import settings_like, take_weights

SMALL = ["--steps", "2", "--batch-size", "8", "--evaluations", "1", "--warmup", "0"]
DIGITS = tuple(map(str, range(10)))


@pytest.fixture
def weights(tmp_path):
    """Return a function that writes the weights of a model and gives their path."""

    def write(model=None, classes=DIGITS, **options):
        torch.manual_seed(1)
        model = model or cdn.GradResNet(len(classes), 1, **(dict(width=8, blocks=(2, 2)) | options))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)
        cdn.save_model(tmp_path / "other.safetensors", model, classes)
        return tmp_path / "other.safetensors"

    return write


def network(**options):
    torch.manual_seed(2)
    return cdn.GradResNet(10, 1, **(dict(width=8, blocks=(2, 2)) | options))


def test_weights_are_taken(weights):
    path, model = weights(mean=0.25), network()
    fresh = {name: t.clone() for name, t in model.state_dict().items()}
    assert take_weights(model, DIGITS, path) == f"weights of {path}"
    given = cdn.load(path).state_dict()
    for name, t in model.state_dict().items():
        assert torch.equal(t, fresh[name] if name.startswith("calibration") else given[name]), name


def test_other_classes_stay_fresh(weights):
    path, model = weights(classes=("cat", "dog", "frog")), network()
    classes = model.head.classes.weight.clone()
    assert take_weights(model, DIGITS, path) == f"weights of {path}; fresh: head.classes.weight, for other classes"
    assert torch.equal(model.head.classes.weight, classes)
    assert all(torch.equal(a, b) for a, b in zip(model.trunk.parameters(), cdn.load(path).trunk.parameters()))


@pytest.mark.parametrize(
    "other, sentence",
    [
        (dict(in_channels=3), "takes images of 3 channels, and those of the data have 1"),
        (dict(width=16), r"does not fit: .* is \[.*\], expected \[.*\]; leave out --model and the other options"),
        (dict(head="linear"), r"does not fit: head.maps.0 is None, expected"),
        (dict(blocks=(1, 1)), r"does not fit: .* is None, expected"),
        (dict(norm="plain"), "has norm 'plain', expected 'scale-preserving'"),
        (dict(homogeneous=True), "has homogeneous True, expected False"),
        ("resnet", "is a resnet, expected a gradresnet, as --model says"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_a_sentence(weights, other, sentence):
    if other == "resnet":
        path = weights(cdn.ResNet(10, 1, width=8, blocks=(2, 2)))
    else:
        path = weights(cdn.GradResNet(**(dict(num_classes=10, in_channels=1, width=8, blocks=(2, 2)) | other)))
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(CDNError, match=sentence):
        take_weights(model, DIGITS, path)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_the_settings_of_a_network_follow_its_weights(weights):
    expected = dict(model="gradresnet-small", width=8, stem="cifar", head="linear", norm="plain", homogeneous=False)
    assert settings_like(weights(head="linear", norm="plain")) == expected
    with pytest.raises(CDNError, match=r"has \[3, 1\] blocks in its stages, which no --model has"):
        settings_like(weights(blocks=(3, 1)))


def test_a_finished_run_is_continued_as_a_new_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--width", "8", "--out", "first", *SMALL]) is None
    assert train.main(["--init", "first", "--out", "second", "--learning-rate", "1e-9", *SMALL]) is None
    assert f"weights of {tmp_path / 'first'}\n" in capsys.readouterr().out
    first, second = (cdn.load(name).state_dict() for name in ("first", "second"))
    assert all(torch.allclose(second[name], t, atol=1e-5) for name, t in first.items() if "calibration" not in name)
    config = read_config("second")
    assert config.training["init"] == str(tmp_path / "first") and config.training["width"] == 8
    # The state is what a resumed run goes on from: the weights it began with may be gone.
    (tmp_path / "first").rename(tmp_path / "moved")
    assert train.main(["--resume", "second"]) is None


def test_a_network_is_tuned_to_other_images_and_classes(tmp_path, monkeypatch, capsys, weights):
    monkeypatch.chdir(tmp_path)
    for split, name in itertools.product(("train", "val"), ("cat", "dog", "frog")):
        folder = tmp_path / "photos" / split / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("L", (12, 12), 40 * number + 20).save(folder / f"{number}.png")
    path = weights(cdn.GradResNet(10, 3, width=8, blocks=(2, 2)))
    out = [
        "--init",
        str(path),
        "--data",
        "imagefolder",
        "--data-dir",
        "photos",
        "--out",
        "run",
        "--image-size",
        "12",
        "--crop-padding",
        "0",
    ]
    assert train.main([*out, *SMALL, "--batch-size", "2"]) is None
    assert "fresh: head.classes.weight, for other classes" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["num_classes"] == 3
    with pytest.raises(CDNError, match="digits takes images of 1 channels, and those of the data have 3"):
        train.main([out[0], "digits", *out[2:6], "--out", "grey", *SMALL, "--batch-size", "2"])


def test_weights_that_do_not_fit_leave_no_run_folder(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CDNError, match="does not fit"):
        train.main(["--init", str(weights()), "--width", "16", "--out", "run", *SMALL])
    assert not (tmp_path / "run").exists()
