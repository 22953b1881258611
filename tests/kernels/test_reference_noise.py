"""The specification of noise: known answers of Philox, the laws of what is drawn, and its independence."""

import math
from dataclasses import replace

import pytest
import scipy.stats
import torch

from cdn_kernels import Noise, NoiseLevels, count_clean
from cdn_kernels.noise import CLEAN_LAWS
from cdn_kernels.philox import philox4x32, random_words
from cdn_kernels.reference import is_clean, sample_noise, sample_sigma, standard_normal

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    words = philox4x32([torch.tensor([c]) for c in counter], key)
    assert tuple(w.item() for w in words) == expected


def test_words_use_every_bit_of_the_key():
    noise = Noise(0x123456789ABCDEF0, 0x7EDCBA9876543210)
    counter = [torch.tensor(c) for c in (2, 1, 0x76543210, 0x7EDCBA98 | 1 << 31)]
    expected = torch.stack(philox4x32(counter, (0x9ABCDEF0, 0x12345678)))
    assert torch.equal(random_words(2, 3, noise, 1)[1, 2], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_standard_and_independent(dtype):
    eps = standard_normal((64, 4, 1000), Noise(1, 2), dtype).double()
    count = eps.numel()
    assert abs(eps.mean()) < 4 / math.sqrt(count)
    assert abs(eps.square().mean() - 1) < 4 * math.sqrt(2 / count)
    assert abs(eps.pow(4).mean() - 3) < 4 * math.sqrt(96 / count)
    assert scipy.stats.kstest(eps.flatten().numpy(), "norm").pvalue > 1e-3
    # The four normals of a block, and the images, are uncorrelated.
    for rows in (eps.view(-1, 4).T, eps.view(64, -1)):
        correlation = torch.corrcoef(rows) - torch.eye(len(rows))
        assert correlation.abs().max() < 5 / math.sqrt(rows.shape[1])


def test_keys_give_different_noise():
    keys = [Noise(0), Noise(1), Noise(1 << 32), Noise(0, 1), Noise(0, 1 << 32)]
    rows = torch.stack([standard_normal((1, 4096), key)[0] for key in keys])
    assert (torch.corrcoef(rows) - torch.eye(len(keys))).abs().max() < 5 / math.sqrt(4096)


@pytest.mark.parametrize(
    "law, cdf",
    [("uniform", scipy.stats.uniform(0.05, 0.75).cdf), ("log-uniform", scipy.stats.loguniform(0.05, 0.8).cdf)],
)
def test_sigma_follows_its_law(law, cdf):
    sigma = sample_sigma(20000, Noise(3), NoiseLevels(law, 0.05, 0.8), torch.float64)
    assert sigma.min() >= 0.05 and sigma.max() <= 0.8
    assert scipy.stats.kstest(sigma.numpy(), cdf).pvalue > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_images_is_clean(share):
    sigma = sample_sigma(10000, Noise(4), NoiseLevels("fixed", high=0.5, clean_share=share))
    assert set(sigma.unique().tolist()) <= {0.0, 0.5}
    assert abs((sigma == 0).double().mean() - share) <= 4 * math.sqrt(share * (1 - share) / 10000)


def test_an_image_gets_the_same_noise_in_any_batch():
    x, levels = torch.rand(7, 3, 5, 5), NoiseLevels()
    y, sigma = sample_noise(x, levels, Noise(5))
    first, sigma_first = sample_noise(x[:3], levels, Noise(5))
    assert torch.equal(y[:3], first) and torch.equal(sigma[:3], sigma_first)


def test_float32_normals_are_the_float64_ones_rounded_almost():
    single = standard_normal((8, 1000), Noise(6), torch.float32).double()
    double = standard_normal((8, 1000), Noise(6), torch.float64)
    radius = double.view(-1, 2).norm(dim=1, keepdim=True)
    # A few roundings of the result; and that of u, half an ulp below 1, which counts where the radius is
    # small.
    bound = 4 * 2.0**-24 * radius + 2.0**-25 / radius
    assert ((single - double).view(-1, 2).abs() <= bound).all()


@pytest.mark.parametrize("arguments", [(-1,), (1 << 64,), (0, -1), (0, 1 << 63), (1.5,), (True,)])
def test_keys_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be an integer in"):
        Noise(*arguments)


@pytest.mark.parametrize("offset", [torch.zeros(1, dtype=torch.int64), torch.tensor(1.0)])
def test_tensors_of_another_kind_are_no_offsets(offset):
    with pytest.raises(ValueError, match=r"a tensor as offset must be int64 \[\], got"):
        Noise(0, offset)


@pytest.mark.parametrize(
    "arguments",
    [
        ("normal",),
        ("uniform", 0.0, 1.0),
        ("uniform", 2.0, 1.0),
        ("fixed", 0.1, 0.0),
        ("uniform", 0.1, math.inf),
        ("uniform", 0.1, 1.0, 1.5),
    ],
)
def test_levels_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="NoiseLevels"):
        NoiseLevels(*arguments)


# ------------------------------------------------------------------------------------------------------------
# Which images stay clean
# ------------------------------------------------------------------------------------------------------------

SHARES = [0.0, 2.0**-32, 0.1, 1 / 3, 0.5, 0.9, 1 - 2.0**-32, 1.0]


def clean(batch, noise, share, law="stratified"):
    return sample_sigma(batch, noise, NoiseLevels(clean_share=share, clean=law)) == 0


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("first", [0, 12345, (1 << 32) - 20])
def test_every_run_of_places_meets_the_share_to_within_one_image(share, first):
    for step in range(20):
        key, levels = Noise(8, step, first), NoiseLevels(clean_share=share)
        flags = clean(33, key, share)
        # The law itself, in integers of Python.
        u = int(random_words(1, 2, Noise(8, step), 1)[0, 1, 0])
        wide = round(share * 2**32)
        assert flags.tolist() == [(i * wide + u) % 2**32 + wide >= 2**32 for i in range(first, first + 33)]
        sums = torch.cat([torch.zeros(1, dtype=torch.int64), flags.cumsum(0)])
        for n in range(1, 34):
            held = sums[n:] - sums[:-n]
            assert held.min() >= math.floor(n * wide / 2**32) and held.max() <= math.ceil(n * wide / 2**32)
        for batch in (0, 1, 2, 7, 33):
            assert count_clean(batch, key, levels) == int(flags[:batch].sum())
        assert torch.equal(is_clean(key.placed(33, "cpu"), key, levels), flags)


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5])
def test_every_place_is_clean_as_often_as_every_other(share):
    flags = torch.stack([clean(12, Noise(seed, step), share) for seed in range(4) for step in range(500)])
    hits, expected = flags.sum(0).double(), len(flags) * share
    assert ((hits - expected).abs() < 4 * math.sqrt(expected * (1 - share))).all()
    # The phase u, of which all follows, is uniform, and another one for every key.
    words = torch.stack([random_words(1, 2, Noise(9, step), 1)[0, 1, 0] for step in range(2000)])
    bins = torch.histc(words.double(), 32, 0, 2**32)
    assert scipy.stats.chisquare(bins.numpy()).pvalue > 1e-3 and len(words.unique()) == len(words)


def test_the_law_of_clean_images_changes_nothing_else():
    noise, levels = Noise(10), NoiseLevels(clean_share=0.5)
    old, mine = (sample_sigma(500, noise, replace(levels, clean=law)) for law in CLEAN_LAWS)
    both = (mine > 0) & (old > 0)
    assert 80 < both.sum() < 170 and torch.equal(mine[both], old[both])
    assert torch.equal(mine[mine > 0], sample_sigma(500, noise, NoiseLevels())[mine > 0])
    words = random_words(500, 1, noise, 1)[:, 0, 1]
    assert torch.equal(old == 0, words < 2**31)  # as in version 0.1.0


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: Noise(0, 0, -1), ValueError, r"places must be an integer in \[0, 2\*\*32\) or a tensor .* got -1"),
        (lambda: Noise(0, 0, 1 << 32), ValueError, "places must be an integer in .* got 4294967296"),
        (lambda: Noise(0, 0, 1.5), ValueError, "places must be an integer in .* got 1.5"),
        (
            lambda: Noise(0, 0, torch.tensor([1.0])),
            ValueError,
            r"as places must be int64 \[B\], got torch.float32 \[1\]",
        ),
        (lambda: Noise(0, 0, torch.tensor(1)), ValueError, r"as places must be int64 \[B\], got torch.int64 \[\]"),
        (lambda: Noise(0, 0, torch.tensor([3, -1])), ValueError, "got values from -1 to 3"),
        (lambda: NoiseLevels(clean="often"), ValueError, "clean must be one of independent, stratified, got 'often'"),
        (lambda: count_clean(-1, Noise(0), NoiseLevels()), TypeError, "batch must be an integer of at least 0, got -1"),
        (lambda: count_clean(2, 3, NoiseLevels()), TypeError, r"expected \(batch, Noise, NoiseLevels\), got int"),
        (lambda: count_clean(2, Noise(0), 0.5), TypeError, r"expected \(batch, Noise, NoiseLevels\), got float"),
        (
            lambda: count_clean(2, Noise(0, torch.tensor(1)), NoiseLevels()),
            ValueError,
            "must be integers, got a tensor",
        ),
        (
            lambda: count_clean(2, Noise(0), NoiseLevels(clean="independent")),
            ValueError,
            "must be 'stratified', got 'ind",
        ),
    ],
)
def test_bad_places_and_laws_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
