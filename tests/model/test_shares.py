"""Shares of a batch, be they micro-batches or the parts of processes: their gradients add up to that of the whole."""

import pytest
import torch

import cdn
from cdn.processes import Processes
from cdn_kernels import Noise, NoiseLevels, count_clean, denoising_loss, sample_sigma
from cdn_kernels.backends import cpu

IMPLS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING)))]
LAWS = {
    "half clean": NoiseLevels(clean_share=0.5),
    "nearly all clean": NoiseLevels(clean_share=0.9),
    "all clean": NoiseLevels(clean_share=1.0),
    "none clean": NoiseLevels(),
    "independent": NoiseLevels(clean_share=0.5, clean="independent"),
}
MODELS = {
    "joint": (lambda: cdn.GradResNet(3, 1, width=8, blocks=(1, 1)), dict(label_smoothing=0.1, denoising_weight=3.0)),
    "classification": (lambda: cdn.GradResNet(3, 1, width=8, blocks=(1, 1)), dict(denoising_weight=0.0)),
    "denoiser": (lambda: cdn.DirectDenoiser(1, width=8, blocks=(1, 1)), dict(classification_weight=0.0)),
}


def batch(size):
    torch.manual_seed(size)
    return torch.rand(size, 1, 6, 6, dtype=torch.float64), torch.arange(size) % 3


def noisy_images(size, noise, levels):
    """Return how many images of a batch are noisy, as WholeBatch says that it is found."""
    if levels.clean == "stratified":
        return size - count_clean(size, noise, levels)
    return (sample_sigma(size, noise, levels) > 0).sum()


def gradients(model):
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def accumulated(model, calls):
    """Return the sums of losses, parts and gradients of some calls that add to them."""
    model.zero_grad()
    sums = {}
    for call in calls:
        loss, parts = call()
        for name, value in dict(parts, loss=loss).items():
            sums[name] = sums.get(name, 0) + value
    return sums, gradients(model)


def assert_equal_sums(found, expected):
    (sums, added), (whole, gradient) = found, expected
    assert sums.keys() == whole.keys()
    for name, value in whole.items():
        close = dict(rtol=1e-6, atol=0) if name == "accuracy" else dict(rtol=1e-12, atol=1e-12)  # float32
        torch.testing.assert_close(sums[name], value, check_dtype=False, **close)
    largest = max(float(g.abs().max()) for g in gradient.values())
    for name, g in gradient.items():
        torch.testing.assert_close(added[name], g, rtol=1e-12, atol=1e-12 * largest)


def share_step(model, x, labels, levels, noise, share, told, impl, options):
    """Return a step of the images at some places of a batch."""
    first, size = share.start, len(share)
    here = Noise(noise.seed, noise.offset, places=first)
    whole = cdn.WholeBatch(len(x), noisy_images(len(x), noise, levels))
    counted = told and levels.clean == "stratified"
    clean = count_clean(size, here, levels) if counted else None
    part = slice(first, first + size)
    return lambda: cdn.joint_step(
        model, x[part], labels[part], levels, here, whole=whole, clean=clean, impl=impl, **options
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("told", [False, True], ids=["seen", "told"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", MODELS)
def test_shares_add_up_to_the_whole_batch(kind, law, told, impl):
    make, options = MODELS[kind]
    torch.manual_seed(0)
    model, levels = make().double(), LAWS[law]
    x, labels = batch(7)
    for step, count in ((0, 2), (1, 3), (2, 7)):
        noise = Noise(5, step)
        shares = [Processes(rank, count).share(7) for rank in range(count)]
        calls = [share_step(model, x, labels, levels, noise, share, told, impl, options) for share in shares]
        whole = [lambda: cdn.joint_step(model, x, labels, levels, noise, impl=impl, **options)]
        assert_equal_sums(accumulated(model, calls), accumulated(model, whole))


def test_shares_are_contiguous_complete_and_even():
    for total, count in ((64, 3), (64, 1), (2, 3), (7, 7), (128, 5)):
        shares = [Processes(rank, count).share(total) for rank in range(count)]
        assert [place for share in shares for place in share] == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_loss_of_a_share_is_differentiated_as_the_step_does():
    model, levels, noise = MODELS["joint"][0]().double(), LAWS["half clean"], Noise(5, 1)
    x, labels = batch(7)
    arguments = model, x[2:5], labels[2:5], levels, Noise(5, 1, places=2)
    whole = cdn.WholeBatch(7, noisy_images(7, noise, levels))

    def loss_then_backward():
        loss, parts = cdn.joint_loss(*arguments, whole=whole)
        loss.backward()
        return loss.detach(), parts

    step = accumulated(model, [lambda: cdn.joint_step(*arguments, whole=whole)])
    assert_equal_sums(step, accumulated(model, [loss_then_backward]))


@pytest.mark.parametrize("noisy", [0, 1, torch.tensor(1)])
def test_fewer_noisy_images_than_the_share_has_make_the_step_nan(noisy):
    model = MODELS["joint"][0]().double()
    loss, _ = cdn.joint_step(model, *batch(3), NoiseLevels(), Noise(0), whole=cdn.WholeBatch(9, noisy))
    assert loss.isnan() and next(model.parameters()).grad.isnan().all()


@pytest.mark.parametrize(
    "images, noisy, message",
    [
        (2, 2, "whole.images must be a number of at least the 3 of x, got 2"),
        (3.0, 2, "whole.images must be a number of at least the 3 of x, got 3.0"),
        (True, 1, "whole.images must be a number"),
        (5, 6, r"whole.noisy must be a number in \[0, 5\], got 6"),
        (5, -1, r"whole.noisy must be a number in \[0, 5\], got -1"),
        (5, 2.5, r"whole.noisy must be a number in \[0, 5\], got 2.5"),
        (5, torch.ones(2), r"whole.noisy must be a number or a tensor \[\] on cpu, got \[2\] on cpu"),
        (5, torch.ones((), device="meta"), r"whole.noisy must be a number or a tensor \[\] on cpu, got \[\] on meta"),
    ],
)
@pytest.mark.parametrize("function", [cdn.joint_step, cdn.joint_loss])
def test_numbers_that_cannot_be_are_refused(function, images, noisy, message):
    with pytest.raises(ValueError, match=message):
        function(MODELS["joint"][0]().double(), *batch(3), 0.1, Noise(0), whole=cdn.WholeBatch(images, noisy))


@pytest.mark.parametrize("impl", IMPLS)
def test_denoising_losses_of_shares_add_up(impl):
    score, sigma = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.tensor([0.0, 0.3, 0.2, 0.0, 1.0])
    sigma = sigma.double()
    whole = denoising_loss(score, sigma, Noise(1), impl=impl)
    for count in (3, torch.tensor(3)):
        parts = [
            denoising_loss(score[part], sigma[part], Noise(1, places=part.start), count=count, impl=impl)
            for part in (slice(0, 1), slice(1, 4), slice(4, 5))
        ]
        assert parts[0] == 0
        torch.testing.assert_close(sum(parts), whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "count, message",
    [
        (0, "count must be a number of images of at least 1, got 0"),
        (1.5, "count must be a number of images of at least 1, got 1.5"),
        (True, "count must be a number of images of at least 1, got True"),
        (torch.ones(1), r"count must be a number or a tensor \[\] on cpu, got \[1\] on cpu"),
    ],
)
def test_counts_that_cannot_be_are_refused(count, message):
    with pytest.raises(ValueError, match=message):
        denoising_loss(torch.zeros(2, 3), 0.1, Noise(0), count=count)
