"""Models that come with the package: what was shipped, found by name, with the figures of its card."""

import json
import shutil

import pytest
import torch

import cdn
from benchmarks.models import ship
from cdn.cli.arguments import run_path
from cdn.commands import classify, denoise, evaluate
from cdn.errors import CheckpointError
from cdn.evaluation import evaluate as measure
from cdn.evaluation.metrics import psnr
from cdn.images.image_files import read_image, write_image
from cdn.run_folder import shipped
from cdn.run_folder.names import CONFIG, WEIGHTS
from cdn.run_folder.opened import open_run

NAMES = list(shipped.SHA256)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def digit(tmp_path):
    """The path of an image of a handwritten digit, and its label."""
    x, label = open_run("digits").dataset.test.images(torch.tensor([0]))
    write_image(tmp_path / "digit.png", x)
    return tmp_path / "digit.png", int(label)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_each_is_complete_and_small(name):
    folder = shipped.FOLDER / name
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CONFIG, shipped.CARD, shipped.CARD_TEXT}
    assert (folder / WEIGHTS).stat().st_size <= ship.LARGEST
    config = json.loads((folder / CONFIG).read_text())
    assert config["data"]["data_dir"] is None and config["training"]["data_dir"] is None
    assert {path.name for path in shipped.FOLDER.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_kept_in_16_bits_and_computed_with_in_32(name):
    model = cdn.load(name)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(p, p.half().float()) for p in model.parameters())
    assert len(model.classes) == model.config["num_classes"] and model.calibration_sigma.numel() > 2


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_made_of_its_facts(name):
    folder = shipped.FOLDER / name
    facts = json.loads((folder / shipped.CARD).read_text())
    assert facts["name"] == name and not facts["commit"].endswith("-dirty")
    assert (folder / shipped.CARD_TEXT).read_text() == ship.card_text(facts)


def test_the_figures_of_the_card_are_found_again():
    run = open_run("digits")
    facts = json.loads((shipped.FOLDER / "digits" / shipped.CARD).read_text())["figures"]
    found = measure(run.model, run.dataset.test, levels=run.levels, with_ssim=True)
    assert found.keys() == facts.keys()
    for name, value in found.items():
        # Kernels of other processors round otherwise: an image or two may fall on the other side.
        loose = 0.006 if "accuracy" in name or name == "ece" else 0.02
        assert value == pytest.approx(facts[name], abs=loose), name


def test_test_images_of_cifar10_are_classified_and_denoised_as_the_card_says(shared_data):
    run = open_run("cifar10", data_dir=shared_data / "cifar10")
    facts = json.loads((shipped.FOLDER / "cifar10" / shipped.CARD).read_text())["figures"]
    few = run.dataset.test.images(run.dataset.test.first(500))
    accuracy = float((run.model(few[0]).argmax(1) == few[1]).float().mean())
    # Of 500 images the accuracy has a standard error of little more than a hundredth.
    assert accuracy == pytest.approx(facts["accuracy"], abs=0.04)
    x = run.dataset.test.images(run.dataset.test.first(32, exact=True))[0]
    y = x + 25 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert float(psnr(cdn.denoise(run.model, y, 25 / 255), x).mean()) == pytest.approx(facts["psnr_25"], abs=1.0)


def test_a_photograph_is_classified_by_name(tmp_path, capsys):
    write_image(tmp_path / "photo.png", torch.rand(1, 3, 50, 70, generator=torch.Generator().manual_seed(0)))
    assert classify.main(["cifar10", "photo.png", "--resize", "--json", "--top", "10"]) == 0
    found = json.loads(capsys.readouterr().out)["classes"]
    assert {entry["class"] for entry in found} >= {"cat", "ship"} and len(found) == 10
    assert sum(entry["probability"] for entry in found) == pytest.approx(1, abs=1e-4)


def test_weights_that_were_changed_are_refused(tmp_path, monkeypatch):
    shutil.copytree(shipped.FOLDER / "digits", tmp_path / "shipped" / "digits")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    assert cdn.load("digits").classes
    weights = tmp_path / "shipped" / "digits" / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="is not what the package shipped as 'digits': reinstall the package"):
        cdn.load("digits")


def test_a_folder_of_the_same_name_comes_first(tmp_path, capsys):
    assert run_path("digits") == shipped.FOLDER / "digits" and not capsys.readouterr().err
    (tmp_path / "digits").mkdir()
    assert run_path("digits") == tmp_path.__class__("digits")
    assert capsys.readouterr().err == "note: digits is taken to be the folder here, not the model of that name\n"
    with pytest.raises(CheckpointError, match="does not exist: .* or the name of a model, digits"):
        cdn.load("digits")


def test_an_image_is_classified_by_name(digit, capsys):
    path, label = digit
    assert classify.main(["digits", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"][0]["class"] == str(label)


def test_an_image_is_denoised_by_name(digit, tmp_path, capsys):
    x, _ = read_image(digit[0], 1)
    noisy = x + 50 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "noisy.png", noisy)
    denoise.main(["digits", "noisy.png", "clean.png", "--sigma", "50/255"])
    assert capsys.readouterr().out == "wrote clean.png\n"
    before, after = (float(psnr(read_image(tmp_path / name, 1)[0], x)) for name in ("noisy.png", "clean.png"))
    assert after > before + 2


def test_results_of_a_model_of_the_package_go_to_a_folder_here(tmp_path, capsys):
    evaluate.main(["digits", "--limit", "20"])
    assert "wrote results/digits/evaluation.json" in capsys.readouterr().out
    assert json.loads((tmp_path / "results" / "digits" / "evaluation.json").read_text())["classified"] == 20
