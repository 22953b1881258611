import json

import pytest
import torch
from PIL import Image

from cdn.errors import CDNError
from cdn.pictures.denoising import denoising_picture
from cdn.pictures.plots import curves_picture, reliability_picture


def size(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("kind, shape", [("joint", (1, 8, 8)), ("joint", (3, 12, 16)), ("denoiser", (1, 8, 8))])
def test_denoising_picture(make_model, make_split, tmp_path, kind, shape):
    path = tmp_path / "denoised.png"
    model = make_model(kind, shape[0]).train()
    denoising_picture(model, make_split(9, shape, inexact=(0,)), path, sigmas=(25 / 255,), count=2)
    width, height = size(path)
    assert 400 < width < 1200 and 200 < height < 600
    assert model.training
    assert [p.name for p in tmp_path.iterdir()] == ["denoised.png"]


def test_a_denoiser_has_no_column_given_the_class(make_model, make_split, tmp_path):
    for kind in ("joint", "denoiser"):
        denoising_picture(make_model(kind), make_split(3), tmp_path / f"{kind}.png", sigmas=(25 / 255,), count=1)
    assert size(tmp_path / "joint.png")[0] > size(tmp_path / "denoiser.png")[0]


def test_what_cannot_be_pictured_is_refused(make_model, make_split, tmp_path):
    with pytest.raises(CDNError, match="only classifies"):
        denoising_picture(make_model("classifier"), make_split(4), tmp_path / "a.png")
    with pytest.raises(CDNError, match="inexact"):
        denoising_picture(make_model(), make_split(2, inexact=(0, 1)), tmp_path / "a.png")
    with pytest.raises(CDNError, match="ending in .png"):
        denoising_picture(make_model(), make_split(2), tmp_path / "a.gif", sigmas=(25 / 255,), count=1)


TRAIN = [dict(kind="train", step=s, loss=3.0, classification=2 / (s + 1), denoising=1.0) for s in range(50)]
EVALUATION = [
    dict(kind="evaluation", step=s, accuracy=0.5, accuracy_sigma_15=0.4, psnr_noisy_15=24.0, psnr_15=28.0)
    for s in (0, 49)
]


@pytest.mark.parametrize(
    "rows, panels",
    [
        (TRAIN + EVALUATION, 3),
        (TRAIN, 1),
        (EVALUATION, 2),
        # a denoiser: no classes; a classifier: no denoising; a loss that was not finite
        ([TRAIN[0] | dict(classification=None), EVALUATION[0] | dict(accuracy=None, accuracy_sigma_15=None)], 2),
        ([dict(kind="train", step=0, classification=float("nan")), dict(EVALUATION[0], psnr_15=None)], 1),
    ],
)
def test_curves_picture(tmp_path, rows, panels):
    metrics, path = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tr')
    curves_picture(metrics, path)
    assert size(path)[0] == panels * 690


def test_metrics_that_cannot_be_plotted(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    with pytest.raises(CDNError, match="cannot be read"):
        curves_picture(metrics, tmp_path / "curves.png")
    metrics.write_text("")
    with pytest.raises(CDNError, match="found none"):
        curves_picture(metrics, tmp_path / "curves.png")
    metrics.write_text("torn\n{}\n")
    with pytest.raises(CDNError, match="line 1 is no row of results"):
        curves_picture(metrics, tmp_path / "curves.png")


def test_reliability_picture(tmp_path):
    path = tmp_path / "reliability.svg"
    reliability_picture(torch.eye(3) * 0.7 + 0.1, torch.tensor([0, 1, 1]), path)
    assert "<svg" in path.read_text()
