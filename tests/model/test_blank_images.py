"""Blank images, saturated ones and ones of a single pixel: finite with every head, norm, objective and kernel.

Where an image equals the mean, nothing comes out of a bias-free network, and a logarithm or a root of that has no
derivative. The documented value there is a score of 0.
"""

import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import cdn
import cdn_kernels
from cdn.commands import train
from cdn.data import load_dataset
from cdn.model import density
from cdn.training.jem import STARTS, JointEnergy
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from cdn_kernels.floors import square_floor

HEADS = [("linear", False), ("quadratic", False), ("log-energy", False), ("log-energy", True)]
RUNS = [("float32", "reference"), ("float32", "cpu"), ("bf16", "cpu"), ("float64", "cpu")]
KEY = cdn.Noise(3)
KINDS = ("ordinary", "black", "grey", "white", "one white pixel", "one black pixel", "near the mean", "ordinary too")
BLANK = [k for k, kind in enumerate(KINDS) if not kind.startswith("ordinary")]


def batch(mean, side=8):
    """Return images [8, 1, side, side] of KINDS."""
    y = torch.rand(len(KINDS), 1, side, side, generator=torch.Generator().manual_seed(1))
    for k, value in enumerate((0, 0.5, 1, 0, 1), 1):
        y[k] = value
    y[4, 0, side // 2, side // 2], y[5, 0, side // 2, side // 2] = 1, 0
    y[6] = mean + 1e-6 * (y[6] - 0.5)
    return y


def cases():
    """Yield options of networks, a precision and an implementation: both means meet each head and norm."""
    for (head, homogeneous), norm in product(HEADS, ("plain", "scale-preserving")):
        for k, (precision, impl) in enumerate(RUNS):
            if norm == "plain" and precision != "float32":
                continue
            options = dict(head=head, homogeneous=homogeneous, norm=norm, mean=0.5 * (k % 2))
            name = "-".join(map(str, [*options.values(), precision, impl]))
            yield pytest.param(options, precision, impl, id=name)


def build(options, precision, seed=0):
    torch.manual_seed(seed)
    model = cdn.GradResNet(2, 1, width=8, blocks=(1, 1), **options)
    return model.double() if precision == "float64" else model


def under(precision):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def of_densities(model, y):
    """Return all that the density functions say of images, one row for each image."""
    return dict(
        logits=model(y).detach(),
        log_prob=cdn.log_prob(model, y),
        score=cdn.score(model, y),
        class_scores=density.class_scores(model, y).transpose(0, 1),
        denoised=cdn.denoise(model, y, 0.2),
        sigma=cdn.estimate_sigma(model, y),
    )


def assert_gradients_are_finite(model):
    wrong = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not wrong
    assert any(p.grad is not None for p in model.parameters())
    model.zero_grad()


@pytest.mark.parametrize("options, precision, impl", list(cases()))
def test_densities_of_blank_images_are_finite_and_leave_other_images_alone(options, precision, impl):
    model = build(options, precision)
    for side in (6, 1):
        y = batch(options["mean"], side).to(next(model.parameters()))
        others = y.clone()
        others[BLANK] = torch.rand(len(BLANK), 1, side, side).to(y)
        with cdn_kernels.using(impl), under(precision):
            found, expected = of_densities(model, y), dict(logits=model(others), score=cdn.score(model, others))
        for name, values in found.items():
            assert values.isfinite().all(), name
        for name, values in expected.items():
            assert torch.equal(found[name][[0, 7]], values[[0, 7]]), name
        at_mean = 1 if options["mean"] == 0 else 2
        if options["head"] != "linear":
            assert not found["score"][at_mean].any() and not found["class_scores"][at_mean].any()
            assert torch.equal(found["denoised"][at_mean], y[at_mean]) and found["sigma"][at_mean] == 0


@pytest.mark.parametrize("options, precision, impl", list(cases()))
def test_steps_on_blank_images_have_finite_gradients(options, precision, impl):
    model = build(options, precision)
    y = batch(options["mean"], 6).to(next(model.parameters()))
    classes = torch.arange(len(KINDS)) % 2
    some_clean = torch.tensor([0.2, 0, 0, 0, 0, 0.2, 0, 0.2]).to(y)
    with under(precision):
        for sigma, weights in ((some_clean, dict()), (0.0, dict(denoising_weight=0.0))):
            loss, _ = cdn.joint_step(model, y, classes, sigma, KEY, impl=impl, **weights)
            assert loss.isfinite()
            assert_gradients_are_finite(model)
        # Of second order, where no noise hides the blank images.
        cdn_kernels.score_matching_step(model, y, lambda logits, score: score.square().mean(), impl=impl)
        assert_gradients_are_finite(model)


# Amplitudes of images about the mean, half a decade apart: from ordinary ones to those that float32 has no room for.
AMPLITUDES = [10.0 ** (-k / 2) for k in range(91)]


def faint(model, mean):
    """Return images [91, 1, 6, 6] of all AMPLITUDES about a mean, and which of them are below the floors of all."""
    one = torch.rand(1, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) - 0.5
    y = torch.cat([mean + a * one for a in AMPLITUDES]).to(next(model.parameters()))
    # In float64 these amplitudes are not faint: their squares are a twelfth, and its floor is 1e-132.
    return y, torch.tensor(AMPLITUDES) ** 2 < square_floor(y.dtype) / 1e3


@pytest.mark.parametrize("options, precision, impl", list(cases()))
def test_images_of_every_amplitude_have_finite_densities_and_steps(options, precision, impl):
    model = build(options, precision)
    y, below = faint(model, options["mean"])
    classes = torch.arange(len(y)) % 2
    with cdn_kernels.using(impl), under(precision):
        found = of_densities(model, y)
        for name, values in found.items():
            finite = values.flatten(1).isfinite().all(1) if values.dim() > 1 else values.isfinite()
            assert finite.all(), (name, [a for a, good in zip(AMPLITUDES, finite) if not good])
        if options["head"] == "log-energy" or options["norm"] == "scale-preserving":
            assert not found["score"][below].any() and not found["class_scores"][below].any()
            assert torch.equal(found["denoised"][below], y[below]) and not found["sigma"][below].any()
    with under(precision):
        for sigma, weights in ((0.2 * (classes == 0).to(y), dict()), (0.0, dict(denoising_weight=0.0))):
            cdn.joint_step(model, y, classes, sigma, KEY, impl=impl, **weights)
            assert_gradients_are_finite(model)
        for loss in (lambda logits, score: score.square().mean(), lambda logits, score: score.mean()):
            cdn_kernels.score_matching_step(model, y, loss, impl=impl)
            assert_gradients_are_finite(model)


@pytest.mark.parametrize("options", [dict(head="log-energy"), dict(head="log-energy", homogeneous=True)], ids=str)
def test_images_below_the_floor_add_nothing_of_second_order(options):
    model = build(dict(mean=0.0, **options), "float32")
    y, below = faint(model, 0.0)
    assert below.any()
    result = cdn_kernels.score_matching_step(model, y[below], lambda logits, score: (score + 1).square().sum())
    assert float(result.loss) == y[below].numel()  # the score itself is 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_the_distance_of_blank_images_is_finite():
    model, y = build(dict(head="log-energy"), "float32"), batch(0.5, 6)
    found = cdn.similarity(model, y, y.roll(3, 0), nodes=2)
    assert found.isfinite().all() and (found > 0).all()
    assert not cdn.similarity(model, y, y, nodes=1).any()


@pytest.mark.parametrize("homogeneous", [False, True])
def test_second_derivatives_at_the_mean_are_zero(homogeneous):
    model = build(dict(head="log-energy", homogeneous=homogeneous, mean=0.5), "float64")
    at_mean = torch.full((1, 1, 3, 3), 0.5, dtype=torch.float64)
    result = cdn_kernels.score_matching_step(model, at_mean, lambda logits, score: (score + 1).square().sum())
    assert float(result.loss) == at_mean.numel()  # the score itself is 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
    y = at_mean.clone().requires_grad_()
    (row,) = torch.autograd.grad(cdn.score(model, y, create_graph=True).sum(), y)
    assert not row.any()


def test_clean_blank_images_add_nothing_to_the_denoising_loss():
    options = dict(head="log-energy", norm="scale-preserving", mean=0.0)
    y, eps = batch(0.0).double(), torch.randn(len(KINDS), 1, 8, 8, dtype=torch.float64)
    kept = torch.tensor([0, 7])
    found = []
    for rows in (torch.arange(len(KINDS)), kept):
        model = build(options, "float64")
        sigma = torch.zeros(len(KINDS), dtype=torch.float64).index_fill(0, kept, 0.2)[rows]
        cdn.joint_step(model, y[rows], None, sigma, eps[rows], classification_weight=0)
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("norm", ["plain", "scale-preserving"])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_baselines_take_images_of_every_amplitude(norm, impl):
    classifier = cdn.ResNet(2, 1, width=8, blocks=(1, 1), mean=0.0)
    denoiser = cdn.DirectDenoiser(1, width=8, blocks=(1, 1), norm=norm, mean=0.0)
    torch.nn.init.normal_(denoiser.out.weight)
    y, _ = faint(classifier, 0.0)
    classes = torch.arange(len(y)) % 2
    for model, weights in ((classifier, dict(denoising_weight=0.0)), (denoiser, dict(classification_weight=0.0))):
        sigma = 0.2 * (classes == 0).to(y) if model is denoiser else 0.0
        cdn.joint_step(model, y, classes if model is classifier else None, sigma, KEY, impl=impl, **weights)
        assert_gradients_are_finite(model)
    assert cdn.denoise(denoiser, y, 0.2).isfinite().all()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("side", [8, 1])
def test_baselines_take_blank_images(side, mode):
    classes = torch.arange(len(KINDS)) % 2
    for mean, impl in ((0.0, "reference"), (0.5, "cpu")):
        y = batch(mean, side)
        classifier = cdn.ResNet(2, 1, width=8, blocks=(1, 1), mean=mean).train(mode == "train")
        loss, _ = cdn.joint_step(classifier, y, classes, 0.0, KEY, denoising_weight=0.0, impl=impl)
        assert loss.isfinite()
        assert_gradients_are_finite(classifier)
        denoiser = cdn.DirectDenoiser(1, width=8, blocks=(1, 1), mean=mean)
        torch.nn.init.normal_(denoiser.out.weight)
        sigma = torch.tensor([0.2] + [0.0] * 7)
        for images in (y, torch.full_like(y, mean)):
            loss, _ = cdn.joint_step(denoiser, images, None, sigma, KEY, classification_weight=0.0, impl=impl)
            assert loss.isfinite()
            assert_gradients_are_finite(denoiser)
            assert cdn.denoise(denoiser, images, 0.2).isfinite().all()
            assert torch.equal(denoiser(torch.full_like(y, mean)), torch.zeros_like(y))


@pytest.mark.parametrize("start", STARTS)
def test_chains_of_a_joint_energy_model_on_blank_images_stay_finite(start):
    names = dict(jem_start=start, jem_buffer=16, batch_size=8, seed=0, jem_restart=0.5, jem_steps=3)
    settings = SimpleNamespace(**names, jem_step_size=1.0, jem_noise=0.01, jem_input_noise=0.0, label_smoothing=0.0)
    model = build(dict(head="linear", mean=0.0), "float32")
    x = torch.zeros(8, 1, 8, 8)
    chains = JointEnergy(settings, x, 16, torch.device("cpu"))
    for step in range(2):
        loss, _ = chains.step(model, x, torch.arange(8) % 2, step)
        assert loss.isfinite() and chains.chains.isfinite().all()
        assert_gradients_are_finite(model)


def few_levels(model):
    """Return a model that is calibrated at fewer levels, in less time."""
    model.calibration_sigma = model.calibration_sigma[::8]
    model.calibration_mean_square = model.calibration_mean_square[::8]
    return model


@pytest.mark.parametrize("head", ["linear", "log-energy"])
def test_calibration_on_blank_images_leaves_a_curve_that_can_be_inverted(head):
    model = few_levels(build(dict(head=head, mean=0.0), "float32"))
    cdn.calibrate(model, torch.zeros(4, 1, 8, 8), KEY)
    assert model.calibration_mean_square.isfinite().all() and (model.calibration_mean_square > 0).all()
    assert cdn.estimate_sigma(model, batch(0.0)).isfinite().all()


def test_a_model_without_any_score_sees_no_noise():
    model = few_levels(build(dict(head="linear"), "float32"))
    torch.nn.init.zeros_(model.head.classes.weight)
    y = batch(0.5)
    assert not cdn.score(model, y).any() and not cdn.estimate_sigma(model, y).any()
    cdn.calibrate(model, y, KEY)
    assert not cdn.estimate_sigma(model, y).any()


@pytest.fixture
def blank_folder(tmp_path):
    """An image folder in which most images are black, some white, and a few have something to see."""
    generator = np.random.default_rng(0)
    for split, name in product(("train", "val"), ("a", "b")):
        folder = tmp_path / "images" / split / name
        folder.mkdir(parents=True)
        for k in range(10):
            pixels = generator.integers(0, 256, (8, 8, 3)) if k < 2 else np.full((8, 8, 3), 255 * (k == 2))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "images"


def test_a_training_on_blank_images_skips_no_step(blank_folder, tmp_path):
    small = ["--model", "gradresnet-small", "--width", "8", "--image-size", "6", "--batch-size", "8", "--mean", "0"]
    length = ["--steps", "4", "--evaluations", "1", "--log-every", "1", "--device", "cpu"]
    data = ["--data", "imagefolder", "--data-dir", str(blank_folder), "--crop-padding", "0"]
    assert train.main([*data, *small, *length, "--out", str(tmp_path / "run")]) is None
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    assert len(steps) == 4 and all(row["skipped"] == 0 and row["loss"] is not None for row in steps)
    assert rows[-1]["denoising_loss"] is not None


@pytest.mark.parametrize(
    "options",
    [
        dict(head="quadratic", norm="plain"),
        dict(homogeneous=True, precision="bf16"),
        dict(objective="classification"),
        dict(objective="denoising", head="linear"),
        dict(objective="jem", jem_steps=2),
        dict(model="resnet-small"),
        dict(model="denoiser-small"),
    ],
    ids=str,
)
def test_no_objective_skips_a_step_on_blank_images(blank_folder, options):
    small = dict(model="gradresnet-small", width=8, image_size=6, batch_size=8, crop_padding=0, mean=0.0)
    settings = Settings(**small | dict(data="imagefolder", data_dir=str(blank_folder), steps=3) | options)
    dataset = load_dataset("imagefolder", settings.data_dir, image_size=settings.image_size)
    trainer = Trainer(settings, dataset, 3, torch.device("cpu"))
    for _ in range(3):
        assert all(value.isfinite() for value in trainer.advance().values())
    assert trainer.health.check() == 0
