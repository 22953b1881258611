"""Arguments that are out of range, or of another kind than meant: the right value, or one sentence, everywhere.

The functions are those of :mod:`tests.surface`; the same arguments go to the commands.
"""

import argparse
import warnings

import pytest
import torch

import cdn
import cdn_kernels
from cdn.cli.arguments import noise_level, seed_number
from cdn.errors import CDNError
from cdn.experiments.options import OPTIONS
from cdn.methods.attacks import Ball, attack
from cdn.methods.detection.outlier_sets import synthetic_outliers
from cdn.methods.prior.operators import CompressiveSensing, MissingPixels
from cdn.methods.synthesis import ClassGenerators, infer
from cdn.model.inputs import check_sigma, sigma_text
from cdn.run_folder.weights import load, save_model
from cdn_kernels.noise import SEEDS
from tests.surface import CALLS, REDUCE, Networks

ALL = CALLS | REDUCE
NAN, INFINITY = float("nan"), float("inf")
# Functions of images alone, which ask no network.
METRICS = {"evaluation.psnr", "evaluation.ssim"}
KERNELS = {name for name in CALLS if name.startswith("cdn_kernels")}
WITH_SIGMA = [name for name, call in ALL.items() if call.sigma]


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return Networks()


def images(count=3):
    return torch.rand(count, 1, 8, 8, dtype=torch.float32, generator=torch.Generator().manual_seed(1))


# ----------------------------------------------------------------------------------------------------------------
# Images
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("name", [name for name in ALL if name not in METRICS])
def test_integer_images_are_refused(networks, name, dtype):
    sentence = "must be float32, float64, bfloat16 or float16|must be a tensor of floats"
    if name not in KERNELS:
        sentence = r"expected floating-point images in \[0, 1\], got torch.* divide 8-bit ones by 255"
    if name == "certification.Randomized":
        sentence = "expected floating-point images"
    with pytest.raises((ValueError, TypeError), match=sentence):
        ALL[name](networks, images().mul(255).to(dtype))


@pytest.mark.parametrize("name", ALL)
def test_an_empty_batch_gives_an_empty_result_or_one_sentence(networks, name):
    y = images()
    try:
        found = ALL[name](networks, y[:0])
    except ValueError as error:
        assert "one or more" in str(error)
        assert (name not in METRICS | KERNELS and "torch.nn" not in name) or name in REDUCE
        return
    expected = ALL[name](networks, y)
    assert [(f.shape, f.dtype) for f in found] == [((0, *e.shape[1:]), e.dtype) for e in expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in CALLS if "torch.nn" not in name and name not in KERNELS | METRICS])
def test_images_of_half_precision_are_promoted(networks, name, dtype):
    """They keep three digits: the results are those of the rounded images."""
    y = images().to(dtype)
    found, expected = CALLS[name](networks, y), CALLS[name](networks, y.float())
    for mine, exact in zip(found, expected, strict=True):
        if mine.is_floating_point() and name not in ("certify", "certification.LevelVote"):  # whose noise is rounded
            scale = float(exact.abs().max())
            torch.testing.assert_close(mine.float(), exact.float(), rtol=0, atol=0.02 * scale)


@pytest.mark.parametrize("name", [name for name in ALL if "torch.nn" not in name and name not in KERNELS | METRICS])
def test_images_of_more_digits_than_the_weights_are_refused(networks, name):
    with pytest.raises(
        ValueError, match="expected images in the dtype of the weights, torch.float32, got torch.float64"
    ):
        ALL[name](networks, images().double())


# ----------------------------------------------------------------------------------------------------------------
# Precision of networks
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["half", "bfloat16"])
@pytest.mark.parametrize("rounded", [False, True], ids=["float images", "half images"])
def test_networks_in_half_precision_give_the_right_value_or_a_sentence(half, rounded):
    torch.manual_seed(0)
    own = Networks()
    y = images()
    y = getattr(y, half)() if rounded else y
    expected = {name: CALLS[name](own, y.float())[0] for name in ("ResNet", "DirectDenoiser")}
    for network in own.each():
        getattr(network, half)()
    for name in ("log_prob", "score", "denoise", "estimate_sigma", "similarity", "GradResNet", "certify"):
        with pytest.raises(ValueError, match=r"weights in torch.*float16 leave a log-density .* torch.autocast"):
            CALLS[name](own, y)
    for name, value in expected.items():
        if rounded:
            found = CALLS[name](own, y)[0]
            torch.testing.assert_close(found.float(), value, rtol=0, atol=0.05 * float(value.abs().max()) + 1e-6)
        else:
            with pytest.raises(ValueError, match=r"expected images in the dtype of the weights, torch.*float16, got"):
                CALLS[name](own, y)


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory, networks):
    folder = tmp_path_factory.mktemp("models")
    for name in ("joint", "classifier", "denoiser"):
        save_model(folder / name, getattr(networks, name))
    return folder


@pytest.mark.parametrize("name", [name for name in CALLS if "torch.nn" not in name and name != "cdn_kernels.score"])
def test_loading_under_another_default_changes_nothing(networks, files, double_by_default, name):
    loaded = Networks(**{kind: load(files / kind) for kind in ("joint", "classifier", "denoiser")})
    found = CALLS[name](loaded, images())
    torch.set_default_dtype(torch.float32)
    expected = CALLS[name](networks, images())
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == other.dtype
        if name != "certification.LevelVote":  # whose reference is drawn by torch
            assert torch.equal(mine, other)


def test_networks_built_under_another_default_have_that(double_by_default):
    own = Networks()
    for network in (own.joint, own.classifier, own.denoiser):
        assert {t.dtype for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()} == {
            torch.float64
        }
    for y in (images(), images().double()):
        assert cdn.score(own.joint, y).dtype == y.dtype
        assert own.joint(y).dtype == torch.float64
        assert cdn.estimate_sigma(own.joint, y).isfinite().all()
        assert cdn.denoise(own.denoiser, y, 0.2).dtype == y.dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_files_keep_the_digits_of_a_model(tmp_path, dtype):
    model = cdn.gradresnet_small(4, 1, width=8).to(dtype)
    save_model(tmp_path / "model", model)
    found = load(tmp_path / "model")
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    for mine, saved in zip(found.parameters(), model.parameters(), strict=True):
        assert mine.dtype == kept and torch.equal(mine, saved.to(kept))
    assert cdn.log_prob(found, images().to(kept)).isfinite().all()


def test_a_file_in_float16_is_refused_in_a_sentence(tmp_path):
    save_model(tmp_path / "model", cdn.gradresnet_small(4, 1, width=8).half())
    with pytest.raises(CDNError, match="calibration_mean_square holds nan or infinity"):  # beyond its range
        load(tmp_path / "model")


# ----------------------------------------------------------------------------------------------------------------
# Noise levels
# ----------------------------------------------------------------------------------------------------------------

BAD = {
    "negative": (-0.1, "sigma must be .* got -0.1"),
    "nan": (NAN, "sigma must be a .*number .* got nan"),
    "infinite": (INFINITY, "sigma must be a .*number .* got inf"),
    "negative for one image": (torch.tensor([0.1, -0.2, 0.1]), "sigma must be .* got .*-0.2"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", WITH_SIGMA)
def test_noise_levels_out_of_range_are_refused(networks, name, kind):
    sigma, sentence = BAD[kind]
    with pytest.raises(ValueError, match=sentence):
        ALL[name](networks, images(), sigma)


@pytest.mark.parametrize("sigma", ["0.2", None])
@pytest.mark.parametrize(
    "name", ["denoise", "denoise directly", "joint_loss", "joint_step", "cdn_kernels.sample_noise"]
)
def test_noise_levels_of_another_type_are_refused(networks, name, sigma):
    with pytest.raises(TypeError, match=f"sigma must be a number or a tensor, got {sigma!r}"):
        ALL[name](networks, images(), sigma)


@pytest.mark.parametrize("sigma", [25, 25.0, torch.tensor(25.0), torch.tensor([0.1, 25, 0.1])], ids=str)
@pytest.mark.parametrize("name", ["denoise", "denoise directly", "Denoiser", "denoise by torch.nn"])
def test_grey_levels_are_refused_where_images_have_no_such_noise(networks, name, sigma):
    with pytest.raises(ValueError, match=r"sigma = 25 is not the noise of these images.*25 grey levels are 25 / 255"):
        CALLS[name](networks, images(), sigma)


@pytest.mark.parametrize("sigma", [5.0, 25.0, 1e6])
def test_images_that_have_such_noise_are_denoised(networks, sigma):
    y = images() + sigma * torch.randn(3, 1, 8, 8)
    assert cdn.denoise(networks.joint, y, sigma).isfinite().all()
    levels = cdn.NoiseLevels(low=1e-3, high=1e6)
    assert cdn.similarity(networks.joint, images(), images().flip(2), nodes=3, levels=levels).isfinite().all()


def test_a_noise_level_of_nan_is_that_of_one_image(networks):
    y, sigma = images(), torch.tensor([0.1, NAN, 0.3])
    found = cdn.denoise(networks.joint, y, sigma)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], cdn.denoise(networks.joint, y, torch.tensor([0.1, 0.2, 0.3]))[[0, 2]])
    for impl in ("reference", "cpu"):
        assert cdn_kernels.denoising_loss(y, sigma, cdn.Noise(0), impl=impl).isnan()


@pytest.mark.parametrize("name", ["certify", "certification.predict_smoothed", "Protected"])
def test_grey_levels_of_noise_that_is_added_are_warned_of(networks, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sigma(10.0)
    with pytest.warns(UserWarning, match=r"sigma = 25 leaves nothing .* 25 grey levels are 25 / 255"):
        CALLS[name](networks, images() + 25 * torch.randn(3, 1, 8, 8), 25.0)


def test_noise_levels_are_parsed_and_never_guessed():
    parse = noise_level
    assert parse("0.2") == 0.2 and parse("25/255") == 25 / 255
    for text in ("-0.1", "nan", "inf", "25", "0", "x", "ten", "1/0", "1/2/3", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected") as raised:
            parse(text)
        assert "\n" not in str(raised.value)
    with pytest.raises(argparse.ArgumentTypeError, match="25 grey levels are .*25/255"):
        parse("25")


def test_noise_levels_are_printed_one_way():
    printed = {0.1: "0.1", 25 / 255: "25/255", 1.0: "255/255", 0.25: "0.25", 15 / 255: "15/255", 0.5: "0.5"}
    assert {sigma: sigma_text(sigma) for sigma in printed} == printed
    for grey in range(1, 256):
        assert sigma_text(grey / 255) == f"{grey}/255" and noise_level(sigma_text(grey / 255)) == grey / 255


def test_every_option_of_a_noise_level_has_the_one_type():
    """Every option of a command that is called sigma, or is one, takes 0.1 and 25/255."""
    options = {option.flag: option for groups in OPTIONS.values() for rows in groups.values() for option in rows}
    named = {flag: option.kind for flag, option in options.items() if "sigma" in flag}
    deviations = {"--pixel-sigma"}  # of the pixels of a generator, no noise
    assert set(named) >= {"--sigma", "--sigmas"} and {k for f, k in named.items() if f not in deviations} == {
        noise_level
    }


# ----------------------------------------------------------------------------------------------------------------
# Seeds
# ----------------------------------------------------------------------------------------------------------------

LAST = SEEDS - 1
LABELS = torch.tensor([0, 1, 2])
FROM_SEEDS = {
    "Noise": cdn.Noise,
    "certify": lambda seed: cdn.certify(Networks().torch, images(1), 0.2, 2, 3, 0.5, seed=seed).label,
    "attack": lambda seed: attack(Networks().torch, images(), LABELS, Ball("l2", 0.1), steps=1, seed=seed).images,
    "generators": lambda seed: next(ClassGenerators(2, (1, 8, 8), width=4, seed=seed).parameters()),
    "infer": lambda seed: infer(ClassGenerators(2, (1, 8, 8), width=4), images(), steps=0, draws=4, seed=seed).latents,
    "outliers": lambda seed: synthetic_outliers(images(), seed)["uniform noise"],
    "MissingPixels": lambda seed: MissingPixels((1, 8, 8), 0.5, seed).forward(images()),
    "CompressiveSensing": lambda seed: CompressiveSensing((1, 8, 8), 0.5, seed).forward(images()),
}


@pytest.mark.parametrize("name", FROM_SEEDS)
def test_all_seeds_are_of_one_range(name):
    for seed in (0, 1 << 63, LAST):
        FROM_SEEDS[name](seed)
    for seed in (-1, SEEDS, 0.5, True):
        with pytest.raises(ValueError, match=r"Noise: seed must be an integer in \[0, 2\*\*64\), got"):
            FROM_SEEDS[name](seed)


def test_commands_take_the_same_seeds():
    assert seed_number("0") == 0 and seed_number(str(LAST)) == LAST
    for text in ("-1", str(SEEDS), "0.5", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"expected a whole number of at least 0 and below 2\^64"):
            seed_number(text)
