"""Class-conditional denoising: identities, what a class is worth where that is known, and the command."""

import json
import math

import pytest
import torch

import cdn
from cdn.data import load_dataset
from cdn.errors import CDNError
from cdn.experiments import denoisers
from cdn.experiments.runner import REPORT
from cdn.methods.class_conditional import (
    adversarial_gradient,
    class_gains,
    denoise_with_classes,
    difference_identity,
    mixture_identity,
    round_down,
    summarize_gains,
)
from cdn.run_folder import opened as runs

SIGMA = 0.5


class Mixture(torch.nn.Module):
    """The exact log p(y, c) of two Gaussian classes of equal weight in the noise of one sigma."""

    def __init__(self, means, deviation, sigma):
        super().__init__()
        self.config = dict(num_classes=len(means))
        self.means = torch.nn.Parameter(means)
        self.variance = deviation**2 + sigma**2

    def forward(self, y):
        return -(y[:, None] - self.means).square().sum((2, 3, 4)) / (2 * self.variance)


@pytest.fixture
def mixture():
    means = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    means[1, 0, 0] = 0.8
    return Mixture(means, 0.3, SIGMA)


def sample(model, count):
    labels = torch.arange(count) % 2
    clean = model.means.detach()[labels] + 0.3 * torch.randn(count, 1, 2, 2, dtype=torch.float64)
    return clean, labels, torch.randn_like(clean)


def test_class_conditional_denoisers_of_a_gaussian_mixture(mixture):
    clean, labels, noise = sample(mixture, 10)
    y = clean + SIGMA * noise
    denoised = denoise_with_classes(mixture, y, SIGMA, labels)
    shrink = 0.3**2 / (0.3**2 + SIGMA**2)
    means = mixture.means.detach()
    torch.testing.assert_close(denoised.true, means[labels] + shrink * (y - means[labels]))
    torch.testing.assert_close(denoised.wrong, means[1 - labels] + shrink * (y - means[1 - labels]))
    assert torch.equal(denoised.wrong_label, 1 - labels)
    slope = (means[labels] - means[1 - labels]) / mixture.variance
    expected = (1 - denoised.posterior.gather(1, labels[:, None])).view(-1, 1, 1, 1) * slope
    torch.testing.assert_close(adversarial_gradient(mixture, y, labels), expected)


def test_the_true_class_is_worth_what_pythagoras_says(mixture):
    """For an exact model the measured gain and the square of the difference of denoisers have one mean."""
    clean, labels, noise = sample(mixture, 20_000)
    summary = summarize_gains(class_gains(mixture, clean, labels, noise, SIGMA, batch_size=5000))
    (gain, gain_error), (exact, exact_error) = summary["gain"], summary["exact_gain"]
    assert abs(gain - exact) < 4 * math.hypot(gain_error, exact_error) and exact > 20 * gain_error
    assert summary["true"][0] > 10 * summary["true"][1] and summary["wrong"][0] < -10 * summary["wrong"][1]
    assert summary["true_where_misclassified"][0] > summary["true"][0]


def test_the_wrong_class_is_the_most_probable_wrong_one():
    model = cdn.gradresnet_small(5, 1, width=8)
    y, labels = torch.rand(40, 1, 4, 4), torch.arange(40) % 5
    wrong = denoise_with_classes(model, y, SIGMA, labels).wrong_label
    ranked = model(y).detach().argsort(1, descending=True)
    assert torch.equal(wrong, torch.where(ranked[:, 0] == labels, ranked[:, 1], ranked[:, 0]))


def test_identities_hold_to_rounding_and_mismatches_are_seen():
    model = cdn.gradresnet_small(4, 1, width=8).double()
    y, labels = torch.rand(3, 1, 5, 5, dtype=torch.float64), torch.tensor([0, 3, 1])
    for found in (difference_identity(model, y, SIGMA, labels), mixture_identity(model, y, SIGMA)):
        assert found.relative < 1e-11 and found.maximum < 1e-12

    # A posterior of twice the logits is that of another model.
    class Sharper(torch.nn.Module):
        config = model.config

        def forward(self, y):
            logits = model(y)
            return 2 * logits if not torch.is_grad_enabled() else logits

    assert mixture_identity(Sharper(), y, SIGMA).relative > 1e-6


def test_one_class_cannot_be_wrong():
    with pytest.raises(ValueError, match="at least two classes .* got 1"):
        denoise_with_classes(cdn.gradresnet_small(1, 1, width=8), torch.rand(2, 1, 4, 4), 0.1, torch.zeros(2).long())


@pytest.mark.parametrize("value, expected", [(0.9, 0.5), (1.0, 1.0), (499, 200), (700, 500), (0.03, 0.02)])
def test_round_magnifications(value, expected):
    assert math.isclose(round_down(value), expected)


def run(folder, out, *options):
    denoisers.main([str(folder), "--out", str(out), "--device", "cpu", *options])
    return json.loads((out / REPORT).read_text())["results"]


def test_the_command(digits_run, tmp_path, capsys):
    results = run(digits_run, tmp_path, "--limit", "250", "--sigmas", "25/255", "100/255", "--rows", "3")
    assert results["images"] == 250 and f"magnified {results['magnification']:g} times" in capsys.readouterr().out
    for level in results["sigma"].values():
        single, double = level["identities"]["float32"], level["identities"]["float64"]
        assert all(single[key][0] < 1e-5 and double[key][0] < 1e-13 for key in ("difference", "mixture"))
        assert double["mixture"][1] < 1e-12 and single["mixture"][1] < 1e-3
        assert level["psnr_unconditional"] > level["psnr_noisy"] and level["wrong"][0] < -4 * level["wrong"][1]
        difference = level["psnr_true"] - level["psnr_unconditional"]
        assert abs(difference - level["true"][0]) < 1e-9
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("denoisers.png", "gains.png"))


@pytest.mark.usefixtures("blank_pictures")
def test_results_depend_on_the_seed_and_not_on_the_batch_size(digits_run, tmp_path):
    options = ("--limit", "40", "--sigmas", "50/255", "--rows", "1", "--magnification", "7")
    first, same, other = (
        run(digits_run, tmp_path, *options, *more)["sigma"]["50/255"]
        for more in ((), ("--batch-size", "13"), ("--seed", "1"))
    )
    assert abs(first["psnr_true"] - same["psnr_true"]) < 1e-4 < abs(first["psnr_true"] - other["psnr_true"])


def test_inexact_images_have_no_psnr(digits_run, tmp_path, monkeypatch):
    def inexact(*args, **options):
        dataset = load_dataset(*args, **options)
        dataset.test.exact[:] = False
        return dataset

    monkeypatch.setattr(runs, "load_dataset", inexact)
    with pytest.raises(CDNError, match="PSNR needs images that exist losslessly"):
        run(digits_run, tmp_path)


@pytest.mark.parametrize("model", ["plain_run", "denoiser_run"])
def test_models_that_cannot_be_told_a_class(model, tmp_path, request):
    with pytest.raises(CDNError, match="expected a run that models a density and classifies, got a"):
        run(request.getfixturevalue(model), tmp_path / "out")
