"""What is not finite passes through tensors image by image, and never becomes a class, a radius, a decision or a file.

A name that is added to ``cdn.__all__`` needs a row in :mod:`tests.surface`, a command one here.
"""

import ast
import importlib
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import cdn
from cdn.commands import classify, evaluate
from cdn.data.split import MemorySplit
from cdn.errors import CDNError, NotFiniteError
from cdn.evaluation import evaluate as measure
from cdn.evaluation.evaluate import accuracy
from cdn.evaluation.metrics import reliability
from cdn.files import json_text
from cdn.images.image_files import write_image
from cdn.methods.attacks import Ball, attack, sweep
from cdn.methods.prior.likeness import nearest_images
from cdn.methods.smoothing import ABSTAIN, LevelVote, predict_smoothed
from cdn.methods.synthesis import ClassGenerators, ReconstructionClassifier
from cdn.methods.synthesis.latent_descent import latent_descent
from cdn.model.finite import decided
from cdn.run_folder.journal import Journal
from cdn.run_folder.weights import load, save_model
from tests.surface import CALLS, OTHERS, REDUCE, Networks

ROOT = Path(cdn.__file__).parent
NAN, INFINITY = math.nan, math.inf
DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return Networks()


def images(count=3, seed=1):
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------------------------------
# Functions
# ----------------------------------------------------------------------------------------------------------------


def test_every_public_name_is_walked():
    assert not set(cdn.__all__) - {*CALLS, *REDUCE, *OTHERS}, "say how they are called with images"


@pytest.mark.parametrize("value", [NAN, INFINITY])
@pytest.mark.parametrize("name", CALLS)
def test_one_bad_image_leaves_the_others_alone_and_gets_no_decision(networks, name, value):
    y = images()
    bad = y.clone()
    bad[1, 0, 2, 3] = value
    expected, found = CALLS[name](networks, y), CALLS[name](networks, bad)
    for before, after in zip(expected, found, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    decisions = [values[1] for values in found if not values.is_floating_point()]
    if name == "certify":
        assert found[0][1] == ABSTAIN and found[1][1] == 0 and found[2][1] == 0
    elif decisions and name.startswith("certification"):
        assert decisions[0] == ABSTAIN
    elif value is NAN:
        told = [values for values in found if values.is_floating_point()]
        # The noise level that was given is not what was found of the image.
        told = told[:1] if name == "cdn_kernels.sample_noise" else told
        assert all(values[1].isnan().any() for values in told)
        assert all(decision == -1 for decision in decisions)


@pytest.mark.parametrize("name", REDUCE)
def test_sums_over_a_batch_are_nan_and_nothing_is_filled_with_it(networks, name):
    y = images()
    y[1, 0, 2, 3] = NAN
    curve = networks.joint.calibration_mean_square.clone()
    if name == "calibrate":
        with pytest.raises(NotFiniteError, match="the score of some images is nan or infinite; the curve stays"):
            REDUCE[name](networks, y)
        assert torch.equal(networks.joint.calibration_mean_square, curve)
    else:
        assert REDUCE[name](networks, y)[0].isnan().all()


def test_decided():
    rows = torch.tensor([[1.0, 3, 2], [NAN, 9, 1], [INFINITY, 0, 0], [-INFINITY, 0, 1], [-INFINITY] * 3])
    assert decided(rows).tolist() == [1, -1, -1, 2, -1]
    assert torch.func.vmap(decided)(rows.expand(2, 5, 3)).tolist() == [[1, -1, -1, 2, -1]] * 2


class Sometimes(nn.Module):
    """Say class 1 of 3, but nan for a share of the images."""

    def __init__(self, share):
        super().__init__()
        self.weight, self.share = nn.Parameter(torch.ones(())), share

    def forward(self, y):
        logits = torch.tensor([0.0, 1.0, 0.0]).repeat(len(y), 1)
        logits[: round(self.share * len(y))] = NAN
        return logits


@pytest.mark.parametrize("share, certain", [(0, True), (0.1, True), (0.6, False), (1, False)])
def test_a_draw_of_nan_votes_for_no_class(share, certain):
    x = images(2)
    found = cdn.certify(Sometimes(share), x, 0.2, 10, 50, 0.01)
    assert found.label.tolist() == [1 if certain else ABSTAIN] * 2
    assert ((found.radius > 0) == certain).all() and found.radius.isfinite().all()
    assert predict_smoothed(Sometimes(share), x, 0.2, 50, 0.01).tolist() == [1 if certain else ABSTAIN] * 2
    if share == 0.1:
        assert (found.radius < cdn.certify(Sometimes(0), x, 0.2, 10, 50, 0.01).radius).all()


def split():
    pixels = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8)
    return MemorySplit(pixels, torch.zeros(20, dtype=torch.int64), torch.ones(20, dtype=torch.bool))


def test_an_evaluation_takes_nan_for_wrong(networks):
    x, zeros = images(10), torch.zeros(10, dtype=torch.int64)
    assert accuracy(lambda y: torch.full((len(y), 4), NAN), x, zeros, 4) == 0
    assert accuracy(lambda y: torch.tensor([1.0, 0.0]).expand(len(y), 2), x, zeros, 4) == 1
    with pytest.raises(NotFiniteError, match="probabilities: expected finite ones"):
        reliability(torch.tensor([[0.5, 0.5], [NAN, NAN]]), torch.zeros(2, dtype=torch.int64))
    model = Networks().joint
    with torch.no_grad():
        model.head.classes.weight.fill_(NAN)
    report = measure(model, split(), sigmas=(25 / 255,), batch_size=8)
    assert report["accuracy"] == report["accuracy_noisy"] == report["accuracy_sigma_25"] == 0
    assert math.isnan(report["ece"]) and math.isnan(report["psnr_25"]) and math.isfinite(report["psnr_noisy_25"])


def test_training_counts_nan_as_wrong(networks):
    y = torch.full((2, 1, 6, 6), NAN)
    _, parts = cdn.joint_loss(networks.joint, y, torch.zeros(2, dtype=torch.int64), 0.2, cdn.Noise(0))
    assert parts["accuracy"] == 0


def nothing(y):
    return y.flatten(1)[:, :3] * NAN


@pytest.mark.parametrize(
    "decide",
    [
        lambda x, labels: attack(nothing, x, labels, Ball("l2", 0.5), steps=1),
        lambda x, labels: sweep(nothing, x, labels, "linf", [0.1], steps=1),
        lambda x, labels: latent_descent(ReconstructionClassifier(generators(), steps=1), x * NAN, labels, steps=1),
        lambda x, labels: ReconstructionClassifier(generators(), steps=1).calibrate(x * NAN, labels),
        lambda x, labels: LevelVote(Networks().classifier, Networks().joint, [0.2], x * NAN, cdn.Noise(0)),
    ],
    ids=["attack", "sweep", "latent descent", "calibrate", "LevelVote"],
)
def test_what_decides_over_many_images_refuses_in_a_sentence(decide):
    with pytest.raises(NotFiniteError, match="expected .* nan"):
        decide(images(), torch.zeros(3, dtype=torch.int64))


def generators():
    return ClassGenerators(3, (1, 6, 6), latents=2, width=4)


def test_no_image_is_near_one_of_nan():
    x = split().load(torch.arange(3))[0].float().div(255)
    bad = x.clone()
    bad[1, 0, 0, 0] = NAN
    nearest, distance = nearest_images(bad, split_of(x))
    assert nearest[1].isnan().all() and distance[1].isnan()
    assert torch.equal(nearest[[0, 2]], x[[0, 2]]) and (distance[[0, 2]] < 1e-6).all()


def split_of(x):
    pixels = x.mul(255).round().to(torch.uint8)
    return MemorySplit(pixels, torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x), dtype=torch.bool))


# ----------------------------------------------------------------------------------------------------------------
# The source: one place each
# ----------------------------------------------------------------------------------------------------------------


def calls(names):
    """Count the calls of functions and methods of some names, by file of the package."""
    found = Counter()
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
                found[str(path.relative_to(ROOT))] += 1
    return found


def test_json_has_one_writer():
    assert calls({"dumps", "dump"}) == {"files.py": 1}, "write JSON by cdn.files.json_text, which has no NaN"


def test_classes_are_decided_in_one_place():
    """All other calls come after a check that what they look at is finite, or look at no outputs of a model."""
    assert calls({"argmax", "argmin"}) == {
        "model/finite.py": 1,
        "methods/smoothing/certificate.py": 1,  # of counts
        "pictures/photograph_details.py": 1,  # where in a file there is most to see
        "methods/synthesis/latent_descent.py": 3,  # after require_finite
        "methods/synthesis/inference.py": 1,  # between starts, whose result is nan where they are
        "methods/attacks/sweep.py": 1,  # after require_finite
        "methods/attacks/pursuit.py": 1,  # after require_finite
    }, "use cdn.model.finite.decided"


def test_json_is_strict():
    text = json_text({"a": NAN, "b": [INFINITY, (1.5, -INFINITY)], "c": "NaN"})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [None, [1.5, None]], "c": "NaN"}


def test_a_journal_holds_null(tmp_path):
    Journal(tmp_path / "rows.jsonl").append(dict(value=NAN))
    assert Journal(tmp_path / "rows.jsonl").rows == [dict(value=None)]


# ----------------------------------------------------------------------------------------------------------------
# Commands
# ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with runs of untrained models of the digits: one of finite weights, and others."""
    folder = tmp_path_factory.mktemp("runs")
    for name, value in (("good", None), ("nan", NAN), ("huge", 3e38)):
        torch.manual_seed(0)
        model = cdn.GradResNet(10, 1, width=8, blocks=(1, 1)).eval()
        if value is not None:
            with torch.no_grad():
                model.head.classes.weight.fill_(value)
        (folder / name).mkdir()
        save_model(folder / name / "model.safetensors", model, DIGITS)
        config = dict(
            data=dict(name="digits", data_dir=None, image_size=None, shape=[1, 8, 8]),
            classes=DIGITS,
            model=model.config,
            training=dict(sigma_low=0.01, sigma_high=1.0),
        )
        (folder / name / "config.json").write_text(json.dumps(config))
    Image.new("L", (20, 40), 90).save(folder / "in.png")
    return folder


def command(name):
    path = name if "experiments" in name else name.replace("cdn.", "cdn.commands.")
    return importlib.import_module(path).main


def test_a_tile_of_nan_is_not_written_as_black(folder, monkeypatch, tmp_path):
    real, seen = cdn.model.density.denoise, []

    def one_of_nan(model, tile, *arguments):
        seen.append(tile)
        return real(model, tile, *arguments) * (NAN if len(seen) == 2 else 1)

    monkeypatch.setattr(cdn.model.density, "denoise", one_of_nan)
    out = tmp_path / "out.png"
    with pytest.raises(NotFiniteError, match=r"out.png: not written, as values of the image are nan or infinite"):
        command("cdn.denoise")(
            [str(folder / "good"), str(folder / "in.png"), str(out), "--sigma", "0.1", "--tile", "16"]
        )
    assert len(seen) > 2 and not out.exists()


def test_a_noise_level_of_nan_is_not_used(folder, tmp_path):
    with pytest.raises(NotFiniteError, match="noise level cannot be estimated"):
        command("cdn.denoise")([str(folder / "huge"), str(folder / "in.png"), str(tmp_path / "out.png")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_classify_says_nothing_of_infinite_logits(folder, capsys, form):
    assert classify.main([str(folder / "huge"), str(folder / "in.png"), *form]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "in.png: the logits of the model are nan or infinite: nothing can be said of it" in printed.err
    assert classify.main([str(folder / "good"), str(folder / "in.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["sigma"] > 0


def test_an_evaluation_names_what_is_not_finite(folder, capsys, tmp_path):
    evaluate.main([str(folder / "huge"), "--limit", "8", "--device", "cpu", "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert found["accuracy"] == 0 and found["ece"] is None and found["psnr_25"] is None
    assert "not written are" in capsys.readouterr().err and not (tmp_path / "reliability.png").exists()


def test_files_of_weights_that_are_not_finite_are_refused(folder):
    load(folder / "good")
    with pytest.raises(CDNError, match="holds nan or infinity"):
        load(folder / "nan")


def test_pictures_of_nan_are_not_written(tmp_path):
    with pytest.raises(NotFiniteError):
        write_image(tmp_path / "out.png", torch.full((1, 1, 3, 3), NAN))
    assert not list(tmp_path.iterdir())
