"""Clean images, which have no score: the gradient of the whole batch, complete and once, whatever leaves them out."""

import pytest
import torch
from torch import nn

import cdn
from cdn.model.capabilities import treats_images_alone
from cdn_kernels import Noise, NoiseLevels, count_clean, sample_noise
from cdn_kernels.backends import cpu

HALF = NoiseLevels(clean_share=0.5)
CASES = {
    "joint": (dict(), dict()),
    "quadratic plain": (dict(head="quadratic", norm="plain"), dict(label_smoothing=0.1)),
    "linear": (dict(head="linear"), dict(classification_weight=0.7, denoising_weight=3.0)),
    "homogeneous": (dict(homogeneous=True), dict(denoising_weight=torch.tensor(0.3))),
    "weights in tensors": (dict(), dict(classification_weight=torch.tensor(0.7), denoising_weight=torch.tensor(0.0))),
    "denoising": (dict(), dict(classification_weight=0.0)),
    "classification": (dict(), dict(denoising_weight=0.0)),
}
needs_kernels = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
IMPLS = ["reference", pytest.param("cpu", marks=needs_kernels)]


class Thirds(nn.Module):
    """A network of someone else on images [B, 1, 6, 6]: three logits, and layers of any kind on the way."""

    def __init__(self, *layers, **attributes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Softplus(), *layers, nn.Flatten(), nn.Linear(96, 3))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, y):
        return self.layers(y)


def network(**options):
    torch.manual_seed(0)
    return cdn.GradResNet(3, 1, width=8, blocks=(1, 1), **options).double()


def batch(size):
    torch.manual_seed(size)
    return torch.rand(size, 1, 6, 6, dtype=torch.float64), torch.arange(size) % 3


def sizes_of_forwards(model, call):
    """Return what a call returns, and the sizes of the batches that the model was called with."""
    seen = []
    with model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0]))):
        return call(), seen


def gradients(model, call):
    """Return the loss, the parts and the gradients of a call that adds to them, and the sizes of its forwards."""
    model.zero_grad()
    (loss, parts), seen = sizes_of_forwards(model, call)
    if loss.requires_grad:
        loss.backward()
    return loss.detach(), parts, {name: p.grad for name, p in model.named_parameters()}, seen


def assert_same_as_whole(model, x, labels, sigma, noise, impl="reference", told=None, **weights):
    """Compare a step with the gradient of the loss of the whole batch; return the sizes of its forwards."""
    arguments = model, x, labels, sigma, noise
    loss, parts, found, seen = gradients(model, lambda: cdn.joint_step(*arguments, clean=told, impl=impl, **weights))
    value, expected_parts, expected, whole = gradients(model, lambda: cdn.joint_loss(*arguments, impl=impl, **weights))
    close = dict(rtol=1e-12, atol=1e-12)
    assert whole == [len(x)] and parts.keys() == expected_parts.keys()
    torch.testing.assert_close(loss, value, **close)
    for name in parts:
        torch.testing.assert_close(parts[name], expected_parts[name], check_dtype=False, **close)
    assert {k for k, g in found.items() if g is None} == {k for k, g in expected.items() if g is None}
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12 * largest)
    return seen


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_whole_batch(case, impl):
    options, weights = CASES[case]
    model, counts = network(**options), set()
    for size in (1, 2, 3, 7):
        x, labels = batch(size)
        for step in range(2 if size < 7 else 1):
            noise = Noise(2, step)
            clean = count_clean(size, noise, HALF)
            parted = [size - clean, clean]
            if case == "denoising":  # no term has clean images; where there are no others, all gradients are 0
                parted = [size - clean or size]
            # In kernels of a CPU the score leaves clean images out of what is computed, else out of the batch.
            if case == "classification" or 0 in parted or (impl == "cpu" and case != "denoising"):
                parted = [size]
            assert assert_same_as_whole(model, x, labels, HALF, noise, impl, **weights) == parted
            counts.add((size, clean))
    assert {(1, 0), (1, 1), (2, 1), (3, 1), (3, 2)} <= counts


def test_a_direct_denoiser_sees_no_clean_images():
    model = cdn.DirectDenoiser(1, width=8, blocks=(1, 1)).double()
    for step in range(4):
        noise = Noise(1, step)
        seen = assert_same_as_whole(model, *batch(3), HALF, noise, classification_weight=0.0)
        assert seen == [3 - count_clean(3, noise, HALF)]


LEVELS = torch.tensor([0.0, 0.3, 0.0, 0.0, 0.2])


@pytest.mark.parametrize(
    "sigma, parted",
    [
        (LEVELS, [2, 3]),
        (LEVELS.flip(0).double(), [2, 3]),
        (LEVELS.to(torch.float16), [2, 3]),
        (LEVELS + 0.1, [5]),
        (torch.zeros(5), [5]),
        (torch.tensor(0.0), [5]),
        (torch.tensor(0.3), [5]),
        (0.0, [5]),
        (0.3, [5]),
        (NoiseLevels(clean_share=0.5, clean="independent"), [5]),
        (NoiseLevels(clean_share=0.0), [5]),
        (NoiseLevels(clean_share=1.0), [5]),
    ],
    ids=str,
)
def test_levels_that_are_given_are_taken_apart_too(sigma, parted):
    x, labels = batch(5)
    noises = [Noise(3, 4), Noise(3, 4, torch.tensor([7, 1, 0, 9, 2])), Noise(3, torch.tensor(4), 2)]
    for noise in noises if isinstance(sigma, NoiseLevels) else [*noises, torch.randn_like(x)]:
        assert assert_same_as_whole(network(), x, labels, sigma, noise) == parted


def test_clean_images_alone_have_no_score(monkeypatch):
    monkeypatch.setattr("cdn_kernels.score_matching_step", None)
    x, labels = batch(3)
    for sigma in (0.0, torch.zeros(3), NoiseLevels(clean_share=1.0)):
        loss, parts = cdn.joint_step(network(), x, labels, sigma, Noise(0))
        assert parts["denoising"] == 0 and loss == parts["classification"]


def test_places_decide_which_images_are_clean():
    """Shards of a batch, and another order of it, take the gradients that they have in the whole."""
    model, (x, labels) = network(), batch(7)
    for noise, part in ((Noise(1, 2, 2), slice(2, 7)), (Noise(1, 2, torch.tensor([5, 0, 6])), [5, 0, 6])):
        _, sigma = sample_noise(x, HALF, Noise(1, 2))
        clean = int((sigma[part] == 0).sum())
        for key in (noise, Noise(1, torch.tensor(2), noise.places)):
            seen = assert_same_as_whole(model, x[part], labels[part], HALF, key)
            assert seen == [len(x[part]) - clean, clean]


@pytest.mark.parametrize("impl, forwards", [("reference", 2), pytest.param("cpu", 1, marks=needs_kernels)])
def test_every_hook_gets_one_complete_gradient(impl, forwards):
    model, (x, labels) = network(), batch(7)
    arguments = model, x, labels, HALF, Noise(1)
    _, _, expected, _ = gradients(model, lambda: cdn.joint_loss(*arguments, impl=impl))
    model.zero_grad()
    hooked, accumulated = {}, {}
    for name, p in model.named_parameters():
        p.register_hook(lambda g, name=name: hooked.setdefault(name, []).append(g))
        p.register_post_accumulate_grad_hook(
            lambda p, name=name: accumulated.setdefault(name, []).append(p.grad.clone())
        )
    _, seen = sizes_of_forwards(model, lambda: cdn.joint_step(*arguments, impl=impl))
    assert len(seen) == forwards
    for name, gradient in expected.items():
        for found in (hooked, accumulated):
            (only,) = found[name]
            torch.testing.assert_close(only, gradient, rtol=1e-10, atol=1e-10)


class Lone(Thirds):
    """A network with parameters of dark images, that noise alone makes, and of others, that clean ones are."""

    images_alone = True

    def __init__(self):
        super().__init__()
        self.dark, self.light = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, y):
        logits, lowest = self.layers(y), y.flatten(1).amin(1, keepdim=True)
        if (lowest < 0).any():
            logits = logits + self.dark * lowest.clamp(max=0)
        if (lowest >= 0).any():
            logits = logits + self.light * lowest.clamp(min=0)
        return logits


def test_parameters_of_one_part_get_their_gradient():
    torch.manual_seed(0)
    model, (x, labels) = Lone().double(), batch(5)
    assert assert_same_as_whole(model, x, labels, 3 * LEVELS, Noise(1)) == [2, 3]
    assert model.dark.grad.abs().min() > 0 and model.light.grad.abs().min() > 0


def test_images_that_require_grad_get_theirs():
    model, (x, labels) = network(), batch(5)
    found = []
    for function in (cdn.joint_step, cdn.joint_loss):
        leaf = x.clone().requires_grad_()
        loss, _ = function(model, leaf, labels, LEVELS, Noise(1))
        found.append(leaf.grad if leaf.grad is not None else torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_levels_that_require_grad_run_whole():
    model, (x, labels) = network(), batch(5)
    sigma = LEVELS.double().requires_grad_()
    _, seen = sizes_of_forwards(model, lambda: cdn.joint_step(model, x, labels, sigma, Noise(1)))
    assert seen == [5] and sigma.grad[0] != 0  # of the cross-entropy, at sigma = 0


def spectral(layer):
    return nn.utils.parametrizations.spectral_norm(layer)


THIRD = {
    "undeclared": (Thirds, False, False),
    "declared": (lambda: Thirds(images_alone=True), True, True),
    "denied": (lambda: Thirds(images_alone=False), False, False),
    "batch norm": (lambda: Thirds(nn.BatchNorm2d(6), images_alone=True), False, True),
    "batch norm of every batch": (
        lambda: Thirds(nn.BatchNorm2d(6, track_running_stats=False), images_alone=True),
        False,
        False,
    ),
    "dropout": (lambda: Thirds(nn.Dropout(0.5), images_alone=True), False, True),
    "dropout of channels": (lambda: Thirds(nn.Dropout2d(0.5), images_alone=True), False, True),
    "group norm": (lambda: Thirds(nn.GroupNorm(2, 6), images_alone=True), True, True),
    "spectral norm": (lambda: Thirds(spectral(nn.Conv2d(6, 6, 1)), images_alone=True), False, False),
    "attention": (lambda: Thirds(attention=nn.MultiheadAttention(4, 1, 0.1), images_alone=True), False, True),
}


@pytest.mark.filterwarnings("ignore:score_matching_step runs")
@pytest.mark.parametrize("case", THIRD)
def test_what_looks_at_other_images_runs_whole(case):
    make, training, evaluating = THIRD[case]
    model, (x, labels) = make().double(), batch(5)
    for alone, mode in ((training, True), (evaluating, False)):
        model.train(mode)
        assert treats_images_alone(model) == alone == treats_images_alone(nn.Sequential(model))
        _, seen = sizes_of_forwards(model, lambda: cdn.joint_step(model, x, labels, LEVELS, Noise(1)))
        assert seen == ([2, 3] if alone else [5])
    assert assert_same_as_whole(model, x, labels, LEVELS, Noise(1)) == seen


def test_networks_of_this_package_are_asked_too():
    baseline = cdn.ResNet(3, 1, width=8, blocks=(1, 1))  # which has BatchNorm
    assert not treats_images_alone(baseline)
    for model in (network(), baseline.eval(), cdn.DirectDenoiser(1, width=8, blocks=(1, 1))):
        assert treats_images_alone(model) and not treats_images_alone(nn.Sequential(model, nn.Identity()))


def test_a_number_that_is_told_is_believed_or_seen_to_be_wrong():
    model, (x, labels) = network(), batch(7)
    noise = Noise(1, torch.tensor(2))
    right = count_clean(7, Noise(1, 2), HALF)
    assert assert_same_as_whole(model, x, labels, HALF, noise, told=right) == [7 - right, right]
    assert assert_same_as_whole(model, x, labels, HALF, noise, told=right - 1) == [8 - right, right - 1]
    model.zero_grad()
    for told in (right + 1, 7):
        loss, _ = cdn.joint_step(model, x, labels, HALF, noise, clean=told)
        assert loss.isnan() and next(model.parameters()).grad.isnan().all()


@pytest.mark.parametrize(
    "sigma, told, message",
    [
        (HALF, 8, r"clean must be an integer in \[0, 7\], got 8"),
        (HALF, -1, r"clean must be an integer in \[0, 7\], got -1"),
        (HALF, 2.0, r"clean must be an integer in \[0, 7\], got 2.0"),
        (0.0, 7, "clean counts images of stratified NoiseLevels with a key, got sigma=0.0"),
        (NoiseLevels(clean="independent"), 0, "clean counts images of stratified NoiseLevels with a key, got sigma="),
    ],
)
def test_numbers_that_cannot_be_are_refused(sigma, told, message):
    with pytest.raises(ValueError, match=message):
        cdn.joint_step(network(), *batch(7), sigma, Noise(1), clean=told)


@pytest.mark.parametrize("sigma", [0.0, LEVELS, False])
def test_bad_noise_is_named_whatever_the_levels(sigma):
    with pytest.raises((TypeError, ValueError), match="noise must|sigma must be a number"):
        cdn.joint_step(network(), *batch(5), sigma, torch.zeros(4, 1, 6, 6, dtype=torch.float64))
