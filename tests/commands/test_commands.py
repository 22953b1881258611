import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cdn.commands import classify, evaluate
from cdn.commands import denoise as command
from cdn.errors import CDNError
from cdn.images import memory
from cdn.images.image_files import read_image
from cdn.model import density
from cdn.run_folder.weights import load


@pytest.fixture
def picture(tmp_path):
    """Return a function that writes a random image and returns its path."""

    def make(height=13, width=10, channels=1, name="in.png"):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
        Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(tmp_path / name)
        return tmp_path / name

    return make


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


# denoise


@pytest.mark.parametrize("height, width", [(13, 10), (1, 1), (8, 31)])
def test_denoise_writes_the_denoised_image_of_any_size(make_run, picture, tmp_path, height, width):
    source, out = picture(height, width), tmp_path / "out.png"
    folder = make_run()
    run(command.main, folder, source, out, "--sigma", "25/255")
    y, _ = read_image(source, 1)
    expected = density.denoise(load(folder), y, 25 / 255).clamp(0, 1)
    assert torch.allclose(read_image(out, 1)[0], expected, atol=0.51 / 255)


def test_denoise_estimates_the_noise_level(make_run, picture, tmp_path, capsys):
    folder, source = make_run(), picture()
    run(command.main, folder, source, tmp_path / "a.png")
    printed = capsys.readouterr().out
    expected = density.estimate_sigma(load(folder), read_image(source, 1)[0]).item()
    assert f"estimated noise level: {expected:.4f}" in printed
    run(command.main, folder, source, tmp_path / "b.png", "--blind")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_tile_that_covers_the_image_changes_nothing(make_run, picture, tmp_path):
    folder, source = make_run(), picture(40, 30)
    for name, tile in (("whole.png", ()), ("covered.png", ("--tile", 40)), ("tiled.png", ("--tile", 16))):
        run(command.main, folder, source, tmp_path / name, *tile)
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "covered.png").read_bytes()
    assert read_image(tmp_path / "tiled.png", 1)[0].shape == (1, 1, 40, 30)


def test_denoise_given_a_class(make_run, picture, tmp_path):
    run(command.main, make_run(), picture(), tmp_path / "out.png", "--sigma", "0.2", "--label", "3")
    with pytest.raises(CDNError, match="--label: expected one of 0, 1, .* got 'cat'"):
        run(command.main, tmp_path / "run-joint-1", picture(), tmp_path / "out.png", "--label", "cat")


def test_denoise_converts_colour_and_says_so(make_run, picture, tmp_path, capsys):
    run(command.main, make_run(), picture(channels=3), tmp_path / "out.png")
    assert "converted to grey" in capsys.readouterr().out
    assert Image.open(tmp_path / "out.png").mode == "L"
    run(command.main, make_run(channels=3), picture(), tmp_path / "out.png")
    assert "repeated in 3 channels" in capsys.readouterr().out
    assert Image.open(tmp_path / "out.png").mode == "RGB"


def test_a_direct_denoiser_needs_no_noise_level(make_run, picture, tmp_path, capsys):
    folder = make_run("denoiser")
    run(command.main, folder, picture(), tmp_path / "out.png")
    assert "noise level" not in capsys.readouterr().out
    run(command.main, folder, picture(), tmp_path / "out.png", "--sigma", "0.1")
    assert "--sigma is ignored" in capsys.readouterr().out


def test_denoise_refuses_what_it_cannot_do(make_run, picture, tmp_path, monkeypatch):
    source = picture()
    with pytest.raises(CDNError, match="only classifies"):
        run(command.main, make_run("classifier"), source, tmp_path / "out.png")
    with pytest.raises(CDNError, match="same file"):
        run(command.main, make_run(), source, source)
    with pytest.raises(CDNError, match="knows no classes"):
        run(command.main, make_run("denoiser"), source, tmp_path / "out.png", "--label", "3")
    monkeypatch.setattr("cdn.images.memory.available_bytes", lambda device: 1000)
    with pytest.raises(CDNError, match="there is no memory for tiles of it either"):
        run(command.main, tmp_path / "run-joint-1", source, tmp_path / "out.png")
    with pytest.raises(CDNError, match="use --tile 16"):
        run(command.main, tmp_path / "run-joint-1", source, tmp_path / "out.png", "--tile", 32)
    assert not (tmp_path / "out.png").exists()


def test_an_image_that_does_not_fit_is_denoised_in_tiles(make_run, picture, tmp_path, monkeypatch, capsys):
    source, folder = picture(70, 150), make_run()
    run(command.main, folder, source, tmp_path / "asked.png", "--tile", 64)
    asked = capsys.readouterr().out
    needed = 2 * memory.bytes_per_pixel(load(folder))
    monkeypatch.setattr("cdn.images.memory.available_bytes", lambda device: int(needed * 2 * 64**2))
    run(command.main, folder, source, tmp_path / "chosen.png")
    said, rest = capsys.readouterr().out.split("\n", 1)
    assert said.endswith(": taken in tiles of 64 pixels, which comes close to the image as a whole")
    assert rest == asked.replace("asked", "chosen")
    chosen, asked = (read_image(tmp_path / name, 1)[0] for name in ("chosen.png", "asked.png"))
    assert torch.equal(chosen, asked)


@pytest.mark.parametrize("options", [(), ("--label", "3")])
def test_a_blind_result_is_that_of_the_level_it_names(make_run, picture, tmp_path, capsys, options):
    source, folder = picture(20, 20), make_run()
    run(command.main, folder, source, tmp_path / "blind.png", *options)
    level = re.search(r"\(([\d.]+)/255\)", capsys.readouterr().out)[1]
    run(command.main, folder, source, tmp_path / "told.png", "--sigma", f"{level}/255", *options)
    blind, told = (read_image(tmp_path / name, 1)[0] for name in ("blind.png", "told.png"))
    # The level is printed with one digit after the point.
    assert (blind - told).abs().max() <= 2 / 255


# classify


def test_classify_prints_json(make_run, picture, capsys):
    source = picture(8, 8)
    assert run(classify.main, make_run(), source, "--json", "--top", 4) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["image"] == str(source) and len(result["classes"]) == 4
    probabilities = [entry["probability"] for entry in result["classes"]]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1.0001
    assert result["sigma"] > 0 and "log_density" in result


def test_classify_says_what_a_plain_classifier_can(make_run, picture, capsys):
    assert run(classify.main, make_run("classifier"), picture(8, 8), "--top", 99) == 0
    printed = capsys.readouterr().out
    assert printed.count("%") == 10 and "noise" not in printed


def test_classify_reports_bad_images_and_goes_on(make_run, picture, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    assert run(classify.main, make_run(), tmp_path / "none.png", picture(8, 8), tmp_path / "bad.png") == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "none.png" in errors[0] and "bad.png" in errors[1]


def test_classify_speaks_of_other_sizes_once(make_run, picture, capsys):
    sources = [picture(9, 9, name="a.png"), picture(9, 9, name="b.png")]
    run(classify.main, make_run(), *sources)
    assert capsys.readouterr().err.count("trained on 8x8") == 1
    run(classify.main, make_run(channels=3), *sources, "--resize")
    assert "trained on" not in capsys.readouterr().err


def test_classify_refuses_what_it_cannot_do(make_run, picture, tmp_path):
    with pytest.raises(CDNError, match="got a DirectDenoiser"):
        run(classify.main, make_run("denoiser"), picture())
    folder = make_run()
    (folder / "config.json").unlink()
    with pytest.raises(CDNError, match="--resize: .* does not say"):
        run(classify.main, folder, picture(), "--resize")
    assert run(classify.main, folder / "model.safetensors", picture()) == 0


# evaluate


@pytest.mark.parametrize("kind", ["joint", "classifier", "denoiser"])
def test_evaluate_writes_its_report(make_run, kind, capsys):
    pytest.importorskip("sklearn")
    folder = make_run(kind)
    run(evaluate.main, folder, "--limit", 20)
    report = json.loads((folder / "evaluation.json").read_text())
    assert (report["accuracy"] is None) == (kind == "denoiser")
    assert (report["ssim_50"] is None) == (kind == "classifier")
    assert (folder / "reliability.png").exists() == (kind != "denoiser")
    printed = capsys.readouterr().out
    assert "20 test images of digits" in printed and "accuracy (%)" in printed


@pytest.mark.parametrize(
    "objective, missing",
    [("classification", "psnr_25"), ("denoising", "accuracy_sigma_25"), ("joint", None), ("jem", None)],
)
@pytest.mark.usefixtures("blank_pictures")
def test_evaluate_leaves_out_what_was_not_trained(make_run, objective, missing):
    pytest.importorskip("sklearn")
    folder = make_run()
    config = json.loads((folder / "config.json").read_text())
    config["training"]["objective"] = objective
    (folder / "config.json").write_text(json.dumps(config))
    run(evaluate.main, folder, "--limit", 20)
    report = json.loads((folder / "evaluation.json").read_text())
    assert [key for key in ("psnr_25", "accuracy_sigma_25") if report[key] is None] == [missing] * (missing is not None)
    assert (report["classified"], report["denoised"]) == (
        None if missing and "accuracy" in missing else 20,
        None if missing and "psnr" in missing else 20,
    )
    assert ("reliability" in report) == (folder / "reliability.png").exists() == (objective != "denoising")


def test_evaluate_writes_where_told(make_run, tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "out").mkdir()
    run(evaluate.main, make_run(), "--limit", 5, "--out", tmp_path / "out" / "a.json")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.json", "reliability.png"}


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(classes=["a", "b"]), "was trained on 2 classes, a, b, but digits has 10"),
        (dict(training={}), "lacks or misstates .*sigma_low"),
        (dict(data=dict(name="digits")), "lacks or misstates .*data_dir"),
    ],
)
def test_evaluate_explains_runs_that_do_not_fit(make_run, change, message):
    pytest.importorskip("sklearn")
    folder = make_run()
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CDNError, match=message):
        run(evaluate.main, folder, "--limit", 5)


def test_evaluate_refuses_a_missing_output_folder(make_run, tmp_path):
    with pytest.raises(CDNError, match="its folder does not exist"):
        run(evaluate.main, make_run(), "--out", tmp_path / "none" / "a.json")


# all


@pytest.mark.parametrize("main", [command.main, classify.main, evaluate.main])
def test_help(main, capsys):
    with pytest.raises(SystemExit) as status:
        main(["--help"])
    assert status.value.code == 0
    printed = capsys.readouterr().out
    assert "example" in printed and "default" in printed


def test_a_command_fails_with_one_line(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "cdn.denoise", tmp_path / "none", "in.png", "out.png"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
