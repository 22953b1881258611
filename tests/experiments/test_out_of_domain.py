"""Reconstructions of what a generator of digits never saw: what the command measures, and what it refuses."""

import json

import pytest

from cdn.errors import CDNError
from cdn.experiments import out_of_domain
from cdn.images.image_files import write_image
from cdn.run_folder.opened import open_run

FAST = [
    "--device",
    "cpu",
    "--limit",
    "24",
    "--train-steps",
    "500",
    "--width",
    "128",
    "--latents",
    "32",
    "--steps",
    "40",
]


def run(folder, out, *options):
    out_of_domain.main([str(folder), "--out", str(out), *FAST, *map(str, options)])
    return json.loads((out / "report.json").read_text())["results"]


def test_other_digits_are_reconstructed_too(digits_run, tmp_path, capsys):
    folder, split = tmp_path / "digits", open_run(digits_run).dataset.test
    folder.mkdir()
    for number, index in enumerate((split.labels < 5).nonzero()[-20:, 0].tolist()):
        write_image(folder / f"{number}.png", split.pixels[[index]].float() / 255)
    results = run(digits_run, tmp_path / "out", "--outliers", f"more={folder}")
    free, prior = (results["searches"][name] for name in ("free", "prior"))
    assert list(results["searches"]) == ["free", "prior", "fitted"]
    assert free["inside"]["images"] == free["other classes"]["images"] == 24 and free["more"]["images"] == 20
    noise = ("Gaussian noise", "uniform noise", "inverted", "shuffled pixels")
    assert free["inside"]["psnr"] > free["other classes"]["psnr"] > max(free[name]["psnr"] for name in noise) + 1
    # The density of the latent is paid for in error, and tells the unknown digits no worse.
    assert all(prior[name]["psnr"] < found["psnr"] for name, found in free.items() if name not in noise)
    assert all(free[name]["auroc"]["error"] > 0.9 and free[name]["auroc"]["log p, image"] > 0.9 for name in noise)
    assert prior["other classes"]["auroc"]["energy"] > 0.7
    # Digits from inside are told from digits from inside by nothing.
    assert all(0.2 < free["more"]["auroc"][detector] < 0.8 for detector in ("error", "log p, image"))
    assert "auroc" not in free["inside"]
    assert "| other classes" in capsys.readouterr().out
    assert (tmp_path / "out" / "picture.png").exists() and (tmp_path / "out" / "reconstructions.png").exists()


def test_what_cannot_be_is_refused(digits_run, plain_run, tmp_path):
    with pytest.raises(CDNError, match="expected a run that models a density, got a ResNet"):
        run(plain_run, tmp_path / "out")
    with pytest.raises(CDNError, match="--inside: expected fewer than the 10 classes of digits, .* got 10"):
        run(digits_run, tmp_path / "out", "--inside", 10)
    with pytest.raises(CDNError, match="--train-images: expected at least two of the first 1 classes, got"):
        run(digits_run, tmp_path / "out", "--train-images", 1, "--inside", 1)
    with pytest.raises(CDNError, match="'inverted' is taken"):
        run(digits_run, tmp_path / "out", "--outliers", f"inverted={tmp_path}")
