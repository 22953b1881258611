import math

import pytest
import torch

from cdn.data.split import MemorySplit
from cdn.errors import CDNError
from cdn.evaluation import evaluate, predict
from cdn.evaluation.evaluate import _noisy, _share
from cdn.noise_keys import EVALUATION
from cdn.processes import ALONE
from cdn_kernels import NoiseLevels, reference
from tests.threads import together

ACCURACY = {"classified", "accuracy", "accuracy_noisy", "ece", *(f"accuracy_sigma_{sigma}" for sigma in (15, 25, 50))}
DENOISING = {
    "denoised",
    "denoising_loss",
    *(f"psnr_{kind}{sigma}" for kind in ("", "noisy_") for sigma in (15, 25, 50)),
}
SSIM = {f"ssim_{kind}{sigma}" for kind in ("", "noisy_") for sigma in (15, 25, 50)}


@pytest.mark.parametrize("kind, none", [("joint", set()), ("classifier", DENOISING), ("denoiser", ACCURACY)])
def test_the_report_has_every_key_and_none_for_what_a_model_cannot_give(make_model, make_split, kind, none):
    report = evaluate(make_model(kind), make_split(40))
    assert report.keys() == ACCURACY | DENOISING
    assert {key for key, value in report.items() if value is None} == none
    assert all(math.isfinite(value) for value in report.values() if value is not None)


def test_ssim_is_measured_when_asked_for(make_model, make_split):
    report = evaluate(make_model(), make_split(20), with_ssim=True)
    assert report.keys() == ACCURACY | DENOISING | SSIM
    assert report["ssim_noisy_15"] > report["ssim_noisy_50"] > 0


def test_results_do_not_depend_on_the_batch_size(make_model, make_split):
    model, split = make_model(), make_split(300)
    whole, parts = (evaluate(model, split, batch_size=size, with_ssim=True) for size in (1000, 37))
    assert whole == pytest.approx(parts, rel=1e-5)


def test_results_depend_on_the_seed_alone(make_model, make_split):
    model, split = make_model(), make_split(40)
    reports = [evaluate(model, split, seed=seed) for seed in (0, 0, 1)]
    assert reports[0] == reports[1] != reports[2]


@pytest.mark.parametrize("kind", ["joint", "classifier", "denoiser"])
@pytest.mark.parametrize(
    "count, batch_size, limit", [(3, 40, None), (2, 256, None), (3, 7, 20), (3, 1, 2), (4, 100, 5)]
)
def test_processes_divide_the_images_and_find_the_same_bits(make_model, make_split, kind, count, batch_size, limit):
    """Uneven shares, several chunks of noise, limits, and processes without an image."""
    model, split = make_model(kind), make_split(270, inexact=(0, 5, 100))
    how = dict(batch_size=batch_size, limit=limit, denoising_limit=limit, with_ssim=limit is not None)
    alone = evaluate(model, split, **how)
    assert together(count, lambda processes: evaluate(model, split, processes=processes, **how)) == [alone] * count


def test_processes_predict_the_same_bits(make_model, make_split):
    model, split = make_model(), make_split(20)
    how = dict(sigmas=(0, None, 0.2), batch_size=3)
    alone, labels = predict(model, split, **how)
    for found, known in together(3, lambda processes: predict(model, split, processes=processes, **how)):
        assert torch.equal(known, labels) and found.keys() == alone.keys()
        assert all(torch.equal(found[sigma], alone[sigma]) for sigma in alone)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_the_noise_of_an_image_may_not_move(make_split, batch_size):
    """Image i of those measured has place i % 256 at position i // 256 of its stream, in batches of any size."""
    split, sizes = make_split(270, inexact=(3,)), []
    which = split.exact.nonzero()[:, 0]
    x, _ = split.images(which)
    chunks = [EVALUATION.key(5, position) for position in (0, 1)]
    eps = torch.cat([reference.standard_normal((n, 1, 8, 8), key) for n, key in zip((256, 13), chunks)])
    level = torch.cat([reference.sample_sigma(n, key, NoiseLevels()) for n, key in zip((256, 13), chunks)])
    parts = [x, eps, level]
    for batch in _noisy(split, _share(which, batch_size, ALONE), NoiseLevels(), 5, "cpu", None):
        start = sum(sizes)
        sizes.append(len(batch[0]))
        assert all(torch.equal(part, whole[start : sum(sizes)]) for part, whole in zip(batch, parts))
    assert sum(sizes) == 269 and max(sizes) == batch_size


def test_the_figures_are_what_they_say(make_model, make_split):
    model, split = make_model("denoiser"), make_split(30)
    model.out.weight.data.zero_()  # the residual is 0, so D is the identity
    report = evaluate(model, split)
    for sigma in (15, 25, 50):
        assert report[f"psnr_{sigma}"] == report[f"psnr_noisy_{sigma}"]
        # The mean over 30 images of 64 values scatters by 0.14 dB about 20 log10(255 / sigma) + 0.07.
        assert report[f"psnr_{sigma}"] == pytest.approx(20 * math.log10(255 / sigma) + 0.07, abs=0.6)
    assert report["denoising_loss"] == pytest.approx(1, abs=0.15)


def test_clean_accuracy_is_that_of_the_model(make_model, make_split):
    model, split = make_model(), make_split(50)
    hits = model(split.pixels.float() / 255).argmax(1) == split.labels
    assert evaluate(model, split)["accuracy"] == pytest.approx(hits.double().mean().item())


def test_inexact_images_stay_out_of_denoising_only(make_model, make_split):
    model = make_model()
    some = make_split(40, inexact=(0, 5))
    rest = MemorySplit(some.pixels[some.exact], some.labels[some.exact])
    masked, plain = evaluate(model, some), evaluate(model, rest)
    assert all(masked[key] == pytest.approx(plain[key], rel=1e-5) for key in DENOISING)
    none = evaluate(model, make_split(10, inexact=range(10)))
    assert {key for key, value in none.items() if value is None} == DENOISING


def test_limits_count_images_from_the_first(make_model, make_split):
    model, split = make_model(), make_split(40)
    first = MemorySplit(split.pixels[:10], split.labels[:10])
    assert evaluate(model, split, limit=10, denoising_limit=10) == evaluate(model, first)
    probabilities, labels = predict(model, split, limit=7)
    assert probabilities[0].shape == (7, 10) and labels.tolist() == split.labels[:7].tolist()


def test_every_image_gets_noise_in_the_denoising_loss(make_model, make_split):
    model, split = make_model(), make_split(30)
    assert evaluate(model, split, levels=NoiseLevels(clean_share=0.9)) == evaluate(model, split)


def test_the_modes_of_all_modules_are_restored(make_model, make_split):
    model = make_model("classifier").train()
    model.trunk[0].eval()
    before = [module.training for module in model.modules()]
    statistics = model.trunk[0][1].running_mean.clone()
    evaluate(model, make_split(10))
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model.trunk[0][1].running_mean, statistics)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_bf16_is_close_to_float32(make_model, make_split):
    model, split = make_model(), make_split(30)
    full, half = (evaluate(model, split, precision=p)["psnr_25"] for p in ("float32", "bf16"))
    assert half == pytest.approx(full, abs=1) and half != full


def test_noise_levels_are_those_of_images_in_0_to_1(make_model, make_split):
    model, split = make_model(), make_split(10)
    report = evaluate(model, split, sigmas=(0.1, 25 / 255))
    assert {"accuracy_sigma_25.5", "accuracy_sigma_25", "psnr_25.5", "psnr_noisy_25"} <= report.keys()
    assert report["psnr_25"] == evaluate(model, split)["psnr_25"]
    with pytest.raises(ValueError, match="sigma must be a number above 0, got 0"):
        evaluate(model, split, sigmas=(0,))
    with pytest.warns(UserWarning, match="25 grey levels are 25 / 255"):
        evaluate(model, split, sigmas=(25,))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"limit": 0}, "limit: expected at least 1 image, got 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "fp8"}, "precision: expected one of float32, bf16"),
    ],
)
def test_bad_options_are_named(make_model, make_split, options, message):
    with pytest.raises(CDNError, match=message):
        evaluate(make_model(), make_split(4), **options)
