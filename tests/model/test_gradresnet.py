"""The network: shapes, sizes, names, what its parts compute, and what it is invariant to."""

import math

import pytest
import torch
import torch.nn.functional as F

import cdn
import cdn_kernels
from cdn.model import build
from cdn.model.gradresnet import GROUP_SIZE, NORMS, STEMS, Block, Filters, Trunk
from cdn.model.head import DEEP_ENERGY, HEADS, Head

SIZES = {
    cdn.gradresnet18: (11_385_600, [64, 128, 256, 512]),
    cdn.gradresnet34: (21_488_192, [64, 128, 256, 512]),
    cdn.gradresnet_small: (687_744, [64, 128]),
}


def model(**options):
    """A small model in float64 whose gains are not 1 and whose output depends on all of its stages."""
    built = cdn.gradresnet_small(4, 2, width=8, **options).double()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.endswith("gain"):
                parameter.uniform_(0.5, 1.5)
    return built


def images(height=6, width=5, batch=3):
    return torch.rand(batch, 2, height, width, dtype=torch.float64)


def convolve(h, filters):
    """Convolve by torch's own function, padded on all sides by half of the filter."""
    return F.conv2d(h, filters.weight, stride=filters.stride, padding=filters.weight.shape[-1] // 2)


# Sizes and shapes


@pytest.mark.parametrize("make", SIZES, ids=lambda make: make.__name__)
def test_sizes_of_the_named_networks(make):
    parameters, channels = SIZES[make]
    network = make()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.trunk.channels == channels
    assert network.config["num_classes"] == 10 and network.config["in_channels"] == 3


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("height, width", [(32, 32), (21, 34), (1, 1)])
def test_every_stage_doubles_the_channels_and_halves_the_resolution(stem, height, width):
    trunk = Trunk(2, 8, (1, 2, 1), stem, "plain", 1e-3)
    features = trunk(torch.rand(2, 2, height, width))
    first = {"cifar": 1, "imagenet": 4}[stem]
    for stage, h in enumerate(features):
        factor = first << stage
        assert h.shape == (2, 8 << stage, math.ceil(height / factor), math.ceil(width / factor))
    assert [len(stage) for stage in trunk.stages] == [1, 2, 1]


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("norm", NORMS)
def test_logits_of_images_of_any_size(stem, head, norm):
    network = cdn.GradResNet(7, 1, width=8, blocks=(1, 1, 1), stem=stem, head=head, norm=norm)
    for shape in [(1, 1), (3, 8), (17, 2)]:
        logits = network(torch.rand(2, 1, *shape))
        assert logits.shape == (2, 7) and logits.dtype == torch.float32 and logits.isfinite().all()


def test_logits_have_the_precision_of_the_images_and_float32_under_autocast():
    network = cdn.gradresnet_small(4, 2, width=8)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images().float()).dtype == torch.float32
    assert network.double()(images()).dtype == torch.float64


# Names and configurations


def test_names_of_the_weights_are_those_of_runs_on_disk():
    """Weights are stored by name: another name would make every run unreadable."""
    block = ["first.weight", "second.weight", "gain"]
    stages = [f"trunk.stages.{stage}.{i}.{name}" for stage in (0, 1) for i in (0, 1) for name in block]
    expected = {
        "mean",
        "calibration_sigma",
        "calibration_mean_square",
        "trunk.stem.0.weight",
        *stages,
        "trunk.stages.1.0.shortcut.weight",
        "head.sides.0.weight",
        "head.classes.weight",
        "head.maps.0",
        "head.maps.1",
    }
    assert set(cdn.gradresnet_small(width=8).state_dict()) == expected
    linear = set(cdn.gradresnet_small(width=8, head="linear", stem="imagenet").state_dict())
    assert linear == expected - {"head.maps.0", "head.maps.1"} | {"trunk.stem.1.weight"}


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(stem="imagenet", head="linear", norm="plain", mean=[0.1, 0.7]),
        dict(head="quadratic", eps=0.1, mean=0.0),
        dict(homogeneous=True),
    ],
    ids=str,
)
def test_a_configuration_builds_the_same_model_again(options):
    one = model(**options)
    two = build(one.config).double()
    assert two.config == one.config and type(two) is cdn.GradResNet
    two.load_state_dict(one.state_dict())
    y = images()
    assert torch.equal(two(y), one(y))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: cdn.gradresnet18(width=12), "GradResNet: width must be a positive multiple of 8, got 12"),
        (lambda: cdn.gradresnet18(width=0), "width must be a positive multiple of 8, got 0"),
        (lambda: cdn.gradresnet18(head="cubic"), "head must be one of linear, quadratic, log-energy, got 'cubic'"),
        (lambda: cdn.gradresnet18(norm="batch"), "norm must be one of plain, scale-preserving, got 'batch'"),
        (lambda: cdn.gradresnet18(stem="mnist"), "stem must be one of cifar, imagenet, got 'mnist'"),
        (lambda: cdn.gradresnet18(homogeneous=True, head="linear"), "homogeneous=True needs head='log-energy'"),
        (lambda: build(dict(kind="vit")), "kind must be one of gradresnet, resnet, denoiser, got 'vit'"),
        (lambda: build(dict(width=8)), "kind must be one of .*, got None"),
        (lambda: build(dict(kind="resnet", norm="plain")), "config of kind 'resnet' does not fit: .*'norm'"),
    ],
)
def test_what_is_no_network_gets_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (0, 3, 8, 8), (2, 3, 0, 8)])
@pytest.mark.parametrize("network", [cdn.GradResNet, cdn.ResNet, cdn.DirectDenoiser])
def test_what_is_no_batch_of_images_is_refused(network, shape):
    built = network(width=8, blocks=(1,))
    with pytest.raises(ValueError, match=rf"{network.__name__}: expected images \[B, 3, H, W\], got \["):
        built(torch.zeros(shape))
    with pytest.raises(ValueError, match="floating-point"):
        built(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


# What the parts compute


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_filters_convolve_without_a_bias(size, stride):
    filters, h = Filters(5, 8, size, stride).double(), torch.randn(2, 5, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(filters(h), convolve(h, filters))
    torch.testing.assert_close(filters.gelu(h), F.gelu(convolve(h, filters)))
    assert [name for name, _ in filters.named_parameters()] == ["weight"]


def test_images_lose_no_digits_to_half_precision():
    """Noise of sigma = 0.001 on a bright image, which bfloat16 rounds away, reaches the first features."""
    filters, y = Filters(3, 16), torch.full((4, 3, 9, 9), 0.9) + 0.001 * torch.randn(4, 3, 9, 9)
    with torch.no_grad():
        # Weights that bfloat16 holds, of sum 0, so that nothing but noise comes out and its own rounding is relative.
        filters.weight.copy_((64 * filters.weight).round() / 64)
        filters.weight[:, :, 1, 1] -= filters.weight.sum((2, 3))
        wanted = F.gelu(convolve(y, filters))
        with torch.autocast("cpu", torch.bfloat16):
            found, rounded = filters.gelu_of_parts(y).float(), filters.gelu(y).float()
    inside = lambda h: h[:, :, 1:-1, 1:-1]
    error = lambda h: float(inside(h - wanted).norm() / inside(wanted).norm())
    assert error(found) < 0.01 and error(rounded) > 0.5


def test_parts_have_the_derivatives_of_the_whole():
    filters = Filters(3, 8)
    y, direction = torch.rand(2, 3, 6, 6), torch.randn(2, 8, 6, 6)
    gradients = []
    for apply in (filters.gelu_of_parts, filters.gelu):
        x = y.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = apply(x)
        gradients.append(torch.autograd.grad((out * direction).sum(), [x, filters.weight]))
    for mine, theirs in zip(*gradients):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0.02 * float(theirs.abs().max()))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("inputs, outputs, stride", [(16, 16, 1), (8, 16, 1), (8, 8, 2), (8, 16, 2)])
def test_a_block_is_its_sentence(inputs, outputs, stride, norm):
    """conv3x3 -> GELU -> conv3x3 -> add the shortcut -> GELU -> group normalization with a gain."""
    block = Block(inputs, outputs, stride, norm, 0.01).double()
    with torch.no_grad():
        block.gain.uniform_(0.5, 1.5)
    h = torch.randn(2, inputs, 7, 6, dtype=torch.float64)
    assert (block.shortcut is None) == (stride == 1 and inputs == outputs)
    shortcut = h if block.shortcut is None else F.conv2d(h, block.shortcut.weight, stride=stride)
    activation = F.gelu(convolve(F.gelu(convolve(h, block.first)), block.second) + shortcut)
    groups = activation.unflatten(1, (-1, GROUP_SIZE))
    variance = groups.var((2, 3, 4), correction=0, keepdim=True)
    common = variance.mean(1, keepdim=True) if norm == "scale-preserving" else 1.0
    normalized = (groups - groups.mean((2, 3, 4), keepdim=True)) * (common / (variance + 0.01 * common)) ** 0.5
    torch.testing.assert_close(block(h), normalized.flatten(1, 2) * block.gain.view(-1, 1, 1))


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_its_formula(kind):
    features = [torch.randn(2, c, s, s, dtype=torch.float64) for c, s in ((8, 5), (16, 3), (32, 2))]
    head, dimension = Head([8, 16, 32], 4, kind).double(), 75
    pooled = [h.mean((2, 3)) for h in features]
    p = torch.cat([pooled[0] @ head.sides[0].weight.T, pooled[1] @ head.sides[1].weight.T, pooled[2]], 1)
    rms = p.square().mean(1, keepdim=True).sqrt()
    energy = sum(F.conv2d(h, a).square().sum(1).mean((1, 2)) for h, a in zip(features, head.maps))
    expected = p @ head.classes.weight.T
    if kind != "linear":
        energy = energy[:, None]
        expected = expected / rms - dimension / 2 * (energy.log() if kind == "log-energy" else energy)
    torch.testing.assert_close(head(features, dimension), expected)
    assert [side.weight.shape for side in head.sides] == [(4, 8), (8, 16)]
    assert [tuple(a.shape) for a in head.maps] == (
        [] if kind == "linear" else [(4, 8, 1, 1), (8, 16, 1, 1), (16, 32, 1, 1)]
    )


def test_deep_energies_start_small():
    torch.manual_seed(0)
    deviations = [float(a.detach().std() * math.sqrt(a.shape[1])) for a in Head([64, 128, 256], 10, "log-energy").maps]
    assert deviations == pytest.approx([1.0, DEEP_ENERGY, DEEP_ENERGY], rel=0.1)


# What the network is invariant to


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_heads_of_scaled_features(factor):
    """Degree 1 of the linear head; p / rms(p) of degree 0 and an energy of degree 2 in the others."""
    features = [torch.randn(2, c, 3, 3, dtype=torch.float64) for c in (8, 16)]
    scaled = [factor * h for h in features]
    linear, quadratic, logarithmic = (Head([8, 16], 4, kind).double() for kind in HEADS)
    torch.testing.assert_close(linear(scaled, 75), factor * linear(features, 75))
    torch.testing.assert_close(logarithmic(scaled, 75), logarithmic(features, 75) - 75 * math.log(factor))
    torch.testing.assert_close(logarithmic(scaled, 75, -2 * math.log(factor)), logarithmic(features, 75))
    classes = quadratic(features, 0)
    energy = classes - quadratic(features, 2)
    torch.testing.assert_close(quadratic(scaled, 2), classes - factor**2 * energy)


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_a_homogeneous_model_puts_the_scale_of_the_image_back(factor):
    """f(m + a (y - m)) = f(y) - d log a, where m is the mean."""
    network, y = model(homogeneous=True, mean=[0.2, 0.6]), images()
    scaled = network.mean + factor * (y - network.mean)
    torch.testing.assert_close(network(scaled), network(y) - y[0].numel() * math.log(factor))


def is_the_mean():
    return torch.full((2, 2, 6, 5), 0.25, dtype=torch.float64)


@pytest.mark.parametrize("options", [*(dict(head=head) for head in HEADS), dict(homogeneous=True)], ids=str)
def test_an_image_that_is_the_mean_has_finite_logits(options):
    assert model(mean=0.25, **options)(is_the_mean()).isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_an_image_that_is_the_mean_has_no_score(head):
    assert not cdn.score(model(mean=0.25, head=head), is_the_mean()).any()


@pytest.mark.parametrize("mean", [0.3, [0.1, 0.8]])
def test_the_mean_is_taken_off(mean):
    network, y = model(mean=mean), images()
    off = torch.tensor(mean).expand(2).view(1, 2, 1, 1)
    assert torch.equal(network.mean, off.double())
    network.mean.zero_()
    expected = network(y - off)
    network.mean.copy_(off)
    assert torch.equal(network(y), expected)


def test_nothing_but_the_image_decides_its_logits():
    """Neither the other images of its batch, as with batch normalization, nor whether the model is trained."""
    network, y = model().train(), images(batch=4)
    logits = network(y)
    torch.testing.assert_close(network(y[1:2]), logits[1:2])
    assert torch.equal(network.eval()(y), logits)


def test_there_are_no_biases():
    network = model()
    assert all(parameter.dim() > 1 or name.endswith(".gain") for name, parameter in network.named_parameters())
    features = network.trunk(torch.zeros(1, 2, 6, 6, dtype=torch.float64))
    assert not any(h.any() for h in features)


@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_channels_last_changes_the_layout_and_not_the_logits(impl):
    network, y = model(), images(12, 10)
    with torch.no_grad(), cdn_kernels.using(impl):
        expected = network(y)
        network.to(memory_format=torch.channels_last)
        assert network.trunk.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
        y = y.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(network(y), expected)
        assert all(h.is_contiguous(memory_format=torch.channels_last) for h in network.trunk(y - network.mean))
