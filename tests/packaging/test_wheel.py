"""What a wheel holds is enough: its models classify and denoise, each in one command."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from sklearn.datasets import load_sample_image

from benchmarks.harness.checkout import ROOT
from cdn.evaluation.metrics import psnr
from cdn.images.image_files import read_image, write_image
from cdn.run_folder.opened import open_run

SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a Python that finds the package where a wheel of it was installed, without libraries."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("cdn", "cdn_kernels", "csrc"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in SOURCES:
        shutil.copy(ROOT / name, folder / "tree" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = os.environ | dict(CDN_CPU="0", CDN_CUDA="0")
    made = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "tree")]
    subprocess.run([*pip, *made], check=True, env=build)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(folder / "site")
    where = subprocess.check_output([sys.executable, "-c", "import cdn; print(cdn.__file__)"], env=environment, cwd="/")
    assert where.decode().startswith(str(folder / "site"))
    return environment


def run(installed, folder, *command):
    return subprocess.run(
        [sys.executable, "-m", *command], check=True, env=installed, cwd=folder, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_an_image_is_classified_by_one_command(installed, tmp_path):
    x, label = open_run("digits").dataset.test.images(torch.tensor([0]))
    write_image(tmp_path / "digit.png", x)
    told = json.loads(run(installed, tmp_path, "cdn.classify", "digits", "digit.png", "--json"))
    assert told["classes"][0]["class"] == str(int(label))


@pytest.mark.slow
def test_a_photograph_is_denoised_by_one_command(installed, tmp_path):
    pixels = torch.from_numpy(load_sample_image("china.jpg").copy())
    x = pixels.permute(2, 0, 1)[None].float() / 255
    write_image(tmp_path / "noisy.png", x + 25 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    run(installed, tmp_path, "cdn.denoise", "photographs", "noisy.png", "clean.png", "--blind")
    before, after = (float(psnr(read_image(tmp_path / name, 3)[0], x)) for name in ("noisy.png", "clean.png"))
    assert before < 22 and after > before + 6
