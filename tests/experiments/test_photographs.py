"""Photographs denoised at full resolution."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cdn
from cdn.commands import train
from cdn.errors import CDNError, DataError
from cdn.evaluation import psnr
from cdn.experiments import photographs
from cdn.images import memory
from cdn.images.image_files import find_images, read_image
from cdn.methods.whole_images import denoise_photograph, score_and_level
from cdn.run_folder.opened import open_run
from cdn.run_folder.weights import load
from cdn_kernels import Noise, sample_noise


@pytest.fixture
def folder(tmp_path):
    """Two pictures of strokes like those of the digits, of different sizes."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, height, width in (("b.png", 24, 33), ("a.png", 40, 24)):
        rows, columns = np.mgrid[:height, :width] / 3
        pixels = 255 * np.clip(np.sin(rows + columns) + np.cos(rows - columns / 2) - 0.2, 0, 1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def measure(run, *options):
    photographs.main([str(run), "--device", "cpu", *map(str, options)])


def test_the_report_is_what_the_library_measures(digits_run, folder, tmp_path, capsys):
    out = tmp_path / "out"
    measure(digits_run, "--images", folder, "--out", out, "--seed", 3)
    results = json.loads((out / "report.json").read_text())["results"]
    assert [row["name"] for row in results["photographs"]] == ["a.png", "b.png"]
    assert [row["size"] for row in results["photographs"]] == [[40, 24], [24, 33]]
    model, x = load(digits_run), read_image(folder / "b.png", 1)[0]
    y, _ = sample_noise(x, 25 / 255, Noise(3, (1 << 62) + 1))
    found = results["photographs"][1]["levels"]["25/255"]
    sigma = float(cdn.estimate_sigma(model, y))
    images = dict(noisy=y, known=cdn.denoise(model, y, 25 / 255), blind=cdn.denoise(model, y, sigma))
    for name, image in images.items():
        assert found[f"psnr_{name}"] == pytest.approx(float(psnr(image, x)), abs=1e-3), name
    assert found["estimated"] == pytest.approx(sigma, rel=1e-4)
    means = [row["levels"]["50/255"]["psnr_known"] for row in results["photographs"]]
    assert results["mean"]["50/255"]["psnr_known"] == pytest.approx(sum(means) / 2)
    # Pictures of several times the size of the training images come out better than they went in.
    assert all(results["mean"][s]["psnr_known"] > results["mean"][s]["psnr_noisy"] + 1 for s in ("25/255", "50/255"))
    printed = capsys.readouterr().out
    assert "2 photographs" in printed and "| 50/255 |" in printed and "| a.png " in printed
    assert Image.open(out / "picture.png").size[0] > 1000


def test_tiles_that_cover_the_image_are_the_image(digits_run, folder):
    model, x = load(digits_run), read_image(folder / "a.png", 1)[0]
    whole, covered, tiled = (denoise_photograph(model, x, 0.1, Noise(0), tile) for tile in (None, 40, 16))
    assert torch.equal(whole.known, covered.known) and whole.sigma == covered.sigma
    assert torch.equal(whole.noisy, tiled.noisy) and not torch.equal(whole.known, tiled.known)
    assert (whole.known - tiled.known).abs().mean() < 0.05
    assert score_and_level(model, whole.noisy, 16)[1] == tiled.sigma != whole.sigma
    torch.testing.assert_close(whole.known, cdn.denoise(model, whole.noisy, 0.1))


@pytest.mark.usefixtures("blank_pictures")
def test_a_direct_denoiser_is_blind(denoiser_run, copy_run, folder, capsys):
    run = copy_run(denoiser_run)
    measure(run, "--images", folder, "--limit", 1)
    results = json.loads((run / "photographs" / "report.json").read_text())["results"]
    level = results["mean"]["15/255"]
    assert level["psnr_known"] is None and level["estimated"] is None and level["psnr_blind"] is not None
    assert len(results["photographs"]) == 1 and "15/255 known" not in capsys.readouterr().out


def test_what_cannot_be_done_is_said_in_a_sentence(digits_run, folder, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="expected a folder of images, found none"):
        measure(digits_run, "--images", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected image files .*, found none"):
        measure(digits_run, "--images", tmp_path / "empty")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 16)
    with pytest.raises(CDNError, match="24x40 pixels take about .*: use --tile 256"):
        measure(digits_run, "--images", folder)
    with pytest.raises(SystemExit):
        measure(digits_run, "--images", folder, "--tile", 8)


@pytest.mark.parametrize("run", ["plain_run", "classification_run"])
def test_a_run_that_only_classifies_is_refused(run, folder, request):
    with pytest.raises(CDNError, match="expected a run that denoises, got a"):
        measure(request.getfixturevalue(run), "--images", folder)


def test_photographs_come_in_the_order_of_their_names(folder):
    assert [path.name for path in find_images(folder)] == ["a.png", "b.png"]


@pytest.mark.usefixtures("blank_pictures")
def test_training_on_crops_of_larger_pictures(tmp_path):
    """What the help of the command proposes: crops in training, whole pictures in evaluation."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        path = tmp_path / "data" / split / "any"
        path.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(path / f"{number}.png")
    run = tmp_path / "run"
    train.main(
        [
            "--out",
            str(run),
            "--data",
            "imagefolder",
            "--data-dir",
            str(tmp_path / "data"),
            "--image-size",
            "64",
            "--crop-size",
            "16",
            "--crop-padding",
            "0",
            "--objective",
            "denoising",
            "--model",
            "gradresnet-small",
            "--width",
            "8",
            "--batch-size",
            "4",
            "--steps",
            "2",
            "--evaluations",
            "1",
            "--device",
            "cpu",
        ]
    )
    measure(run, "--images", tmp_path / "data" / "val" / "any", "--limit", "2")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["psnr_25"] is not None and last["accuracy"] is None
    assert (run / "photographs" / "picture.png").exists()


def test_a_model_of_the_package_needs_none_of_the_data_it_was_trained_on(folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    measure("photographs", "--images", folder, "--limit", 1)
    report = json.loads(Path("results/photographs/photographs/report.json").read_text())
    level = report["results"]["mean"]["25/255"]
    assert report["data"] == "imagefolder" and level["psnr_blind"] > level["psnr_noisy"] + 5
    with pytest.raises(DataError, match="imagefolder needs the folder that holds its data: give --data-dir DIR"):
        open_run("photographs").dataset  # noqa: B018
