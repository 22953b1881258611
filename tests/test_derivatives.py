"""Every public function, in every way of taking derivatives: equal to finite differences, or refused in a sentence.

A name that is added to ``cdn.__all__`` or ``cdn_kernels.__all__`` needs a row here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import cdn
import cdn_kernels
from cdn.methods.distances import information as distance
from cdn.model import density
from cdn_kernels.replaced import replaced

DOUBLE = torch.float64
STEP = 1e-6


class TorchNetwork(nn.Module):
    """Logits of a network of PyTorch's own layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 4)
        self.config = dict(num_classes=4)

    def forward(self, y: Tensor) -> Tensor:
        return self.last(nn.functional.silu(self.conv(y)).mean((2, 3)))


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    module = make().double().eval()
    with torch.no_grad():
        for parameter in module.parameters():  # some start at 0, where derivatives are 0 too
            parameter += 0.1 * torch.randn_like(parameter)
    return module


GRADRESNET = built(lambda: cdn.gradresnet_small(4, 1, width=8))
TORCH = built(TorchNetwork)
RESNET = built(lambda: cdn.ResNet(4, 1, width=8, blocks=(1, 1)))
DIRECT = built(lambda: cdn.DirectDenoiser(1, width=8, blocks=(1, 1)))
LABELS, LEVELS = torch.tensor([1, 2]), torch.tensor([0.2, 0.3], dtype=DOUBLE)
KEY = cdn.Noise(3, 4)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


IMAGES, FEATURES = random(2, 1, 4, 4).sigmoid(), random(2, 8, 3, 3, seed=1)
FILTERS, MORE = random(8, 8, 3, 3, seed=2) / 8, random(8, 8, 3, 3, seed=3) / 8

GAIN = random(8, seed=4) + 2


@dataclass
class Row:
    """How a name is called.

    Attributes:
        call: a function of x, and of ``create_graph`` where the public function has it.
        x: what it is differentiated by.
        create_graph: whether it has the option.
        refuses: {way of taking derivatives: what the sentence says}.
        per_image: whether x[i] alone gives the i-th result, so that vmap over images must give it too.
    """

    call: Callable[..., Tensor]
    x: Tensor = field(default_factory=lambda: IMAGES)
    create_graph: bool = False
    refuses: dict[str, str] = field(default_factory=dict)
    per_image: bool = True


WAYS = (
    "backward",
    "torch.func.vjp",
    "torch.func.grad",
    "torch.func.jvp",
    "forward_ad",
    "torch.func.jacrev",
    "torch.func.jacfwd",
    "autograd.functional.jacobian",
)

REVERSE = WAYS[:3]  # those give <J^T g, v>


def all_ways(sentence: str) -> dict[str, str]:
    return dict.fromkeys(WAYS[1:], sentence)


def of_density(function: Callable[..., Tensor], *arguments, per_image=True) -> dict[str, Row]:
    """Rows of a function of a model of log-densities: our own network, and one of torch's layers."""
    return {
        about: Row(
            lambda y, model=model, **options: function(model, y, *arguments, **options),
            create_graph=True,
            per_image=per_image,
        )
        for about, model in (("GradResNet", GRADRESNET), ("torch.nn", TORCH))
    }


def block(x: Tensor) -> Tensor:
    return cdn_kernels.foreign(TORCH.conv, x)


def energy(y: Tensor) -> Tensor:
    return y.sin().square().sum((1, 2, 3))


def step(y: Tensor) -> Tensor:
    return cdn_kernels.score_matching_step(TORCH, y, lambda outputs, score: score.square().sum()).loss


def joint(function: Callable) -> Callable[[Tensor], Tensor]:
    return lambda x: function(GRADRESNET, x, LABELS, LEVELS, KEY)[0]


ACCUMULATES = "cannot be accumulated under torch.func transforms or forward-mode differentiation; use"
NO_FUNCTION = "is no function of tensors"
# For a name: one row, rows by what they show, or why it has none.
ROWS: dict[str, Row | dict[str, Row] | str] = {}
"""
"""
ROWS = {
    # cdn: functions with create_graph
    "log_prob": of_density(cdn.log_prob),
    "score": of_density(cdn.score)
    | {"of a class": Row(lambda y, **o: cdn.score(GRADRESNET, y, 2, **o), create_graph=True)},
    "class_scores": of_density(density.class_scores, per_image=False),
    "denoise": of_density(cdn.denoise, 0.2)
    | {
        "direct": Row(lambda y, **o: cdn.denoise(DIRECT, y, 0.2, **o), create_graph=True),
        "by sigma": Row(
            lambda s, **o: cdn.denoise(GRADRESNET, IMAGES, s, **o), LEVELS, create_graph=True, per_image=False
        ),
        "of a class": Row(lambda y, **o: cdn.denoise(TORCH, y, 0.2, 1, **o), create_graph=True),
    },
    "estimate_sigma": Row(lambda y, **o: cdn.estimate_sigma(GRADRESNET, y, **o), create_graph=True),
    "similarity": Row(lambda a, **o: cdn.similarity(GRADRESNET, a, 1 - a, nodes=2, **o), create_graph=True),
    "information_estimation_distance": Row(
        lambda a, **o: distance.information_estimation_distance(lambda y, s: y.tanh(), a, 1 - a, nodes=2, **o),
        create_graph=True,
    ),
    # cdn: the objective, modules
    "joint_loss": Row(joint(cdn.joint_loss), per_image=False),
    "joint_step": Row(joint(cdn.joint_step), refuses=all_ways(ACCUMULATES + " cdn.joint_loss"), per_image=False),
    "Denoiser": Row(lambda y: cdn.Denoiser(GRADRESNET)(y, 0.2)),
    "Protected": Row(lambda y: cdn.Protected(RESNET, GRADRESNET, 0.2)(y)),
    "GradResNet": Row(GRADRESNET),
    "ResNet": Row(RESNET),
    "DirectDenoiser": Row(DIRECT),
    "gradresnet18": "GradResNet",
    "gradresnet34": "GradResNet",
    "gradresnet_small": "GradResNet",
    "certify": Row(lambda y: cdn.certify(RESNET, y, 0.2, 2, 4, 0.4).radius, refuses=all_ways("count votes")),
    "calibrate": Row(lambda y: cdn.calibrate(GRADRESNET, y, KEY), refuses=all_ways("fills buffers")),
    "Certificate": NO_FUNCTION,
    "Noise": NO_FUNCTION,
    "NoiseLevels": NO_FUNCTION,
    "WholeBatch": NO_FUNCTION,
    "load": NO_FUNCTION,
    "save_model": NO_FUNCTION,
    # cdn_kernels
    "gelu": Row(cdn_kernels.gelu, FEATURES),
    "silu": Row(cdn_kernels.silu, FEATURES),
    "elu": Row(cdn_kernels.elu, FEATURES),
    "softmax": Row(cdn_kernels.softmax, FEATURES),
    "group_norm": {
        "by x": Row(lambda x: cdn_kernels.group_norm(x, 2, GAIN, GAIN / 2), FEATURES),
        "by gain": Row(lambda gain: cdn_kernels.group_norm(FEATURES, 2, gain), GAIN, per_image=False),
        "by bias": Row(lambda bias: cdn_kernels.group_norm(FEATURES, 2, GAIN, bias), GAIN, per_image=False),
    },
    "conv2d": {
        "by x": Row(lambda x: cdn_kernels.conv2d(x, FILTERS), FEATURES),
        "by filters": Row(lambda w: cdn_kernels.conv2d(FEATURES, w), FILTERS, per_image=False),
    },
    "conv2d_gelu": Row(lambda x: cdn_kernels.conv2d_gelu(x, FILTERS, 2), FEATURES),
    "conv2d_gelu_conv2d": Row(lambda x: cdn_kernels.conv2d_gelu_conv2d(x, FILTERS, MORE), FEATURES),
    "gelu_group_norm": {
        "scale-preserving": Row(lambda x: cdn_kernels.gelu_group_norm(x, torch.ones(8, dtype=DOUBLE), 2), FEATURES),
        "plain": Row(
            lambda x: cdn_kernels.gelu_group_norm(x, torch.ones(8, dtype=DOUBLE), 2, scale_preserving=False), FEATURES
        ),
    },
    "channel_mean": Row(cdn_kernels.channel_mean, FEATURES),
    "energy": Row(lambda h: cdn_kernels.energy([h], [FILTERS[:4, :, :1, :1]]), FEATURES),
    "logsumexp": Row(cdn_kernels.logsumexp, random(2, 5)),
    "cross_entropy": Row(lambda z: cdn_kernels.cross_entropy(z, LABELS), random(2, 5), per_image=False),
    "sample_noise": Row(lambda x: cdn_kernels.sample_noise(x, LEVELS, KEY)[0], per_image=False),
    "denoising_loss": Row(lambda s: cdn_kernels.denoising_loss(s, LEVELS, KEY), per_image=False),
    "foreign": Row(block),
    "recomputed": Row(lambda y: cdn_kernels.recomputed(TORCH, y)),
    "score_matching_step": Row(step, refuses=all_ways(ACCUMULATES + " cdn_kernels.score"), per_image=False),
    "ConvGELU": Row(built(lambda: cdn_kernels.ConvGELU(8, 8)), FEATURES),
    "GELUGroupNorm": Row(built(lambda: cdn_kernels.GELUGroupNorm(2, 8)), FEATURES),
    "standard_normal": NO_FUNCTION,
    "sample_sigma": NO_FUNCTION,
    "count_clean": NO_FUNCTION,
    "Graphed": NO_FUNCTION,
    "first_order": NO_FUNCTION,
    "keep_pages": NO_FUNCTION,
    "using": NO_FUNCTION,
    "reference": NO_FUNCTION,
}
# Names of both packages that are two functions.
KERNEL_SCORE = Row(lambda y, **options: cdn_kernels.score(energy, y, **options), create_graph=True)


def rows() -> list:
    found = {"cdn_kernels.score": KERNEL_SCORE}
    for name, given in ROWS.items():
        found |= {f"{name} {about}": row for about, row in given.items()} if isinstance(given, dict) else {name: given}
    return [pytest.param(row, id=name) for name, row in found.items() if isinstance(row, Row)]


# ----------------------------------------------------------------------------------------------------------------
# Ways of taking the derivative along a direction v: J v, or <J^T g, v>
# ----------------------------------------------------------------------------------------------------------------


def along(jacobian: Tensor, v: Tensor) -> Tensor:
    return torch.tensordot(jacobian, v, v.dim())


def through_dual_numbers(f, x, v):
    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, v)))
        return torch.zeros_like(value) if tangent is None else tangent


def weights(out):
    """Return g, for ways that give the gradient of <g, out>."""
    return random(*out.shape, seed=6)


def by_backward(f, x, v):
    x = x.clone().requires_grad_()
    out = f(x)
    return (torch.autograd.grad(out, x, weights(out))[0] * v).sum()


def by_pulling(f, x, v):
    out, pull = torch.func.vjp(f, x)
    return (pull(weights(out))[0] * v).sum()


def by_gradient(f, x, v):
    weighted = lambda x: (weights(out := f(x)) * out).sum()
    return (torch.func.grad(weighted)(x) * v).sum()


def functional_jacobian(f, x, v):
    return along(torch.autograd.functional.jacobian(f, x, strategy="forward-mode", vectorize=True), v)


TAKE = dict(
    zip(
        WAYS,
        [
            by_backward,
            by_pulling,
            by_gradient,
            lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1],
            through_dual_numbers,
            lambda f, x, v: along(torch.func.jacrev(f)(x), v),
            lambda f, x, v: along(torch.func.jacfwd(f)(x), v),
            functional_jacobian,
        ],
        strict=True,
    )
)
ways = pytest.mark.parametrize("way", WAYS)


def finite_differences(f, x, v):
    return (f(x + STEP * v) - f(x - STEP * v)).detach() / (2 * STEP)


def test_every_public_name_has_a_row():
    names = {*cdn.__all__, *cdn_kernels.__all__}
    assert not names - ROWS.keys(), "say how they are differentiated"
    assert all(given in ROWS for given in ROWS.values() if isinstance(given, str) and given != NO_FUNCTION)


@ways
@pytest.mark.parametrize("row", rows())
def test_derivatives_are_right_or_refused(row, way):
    options = {"create_graph": True} if row.create_graph and way == "backward" else {}
    f, v = lambda x: row.call(x, **options), random(*row.x.shape, seed=7)
    sentence = row.refuses.get(way)
    if sentence:
        with pytest.raises(RuntimeError, match=sentence):
            TAKE[way](f, row.x, v)
    elif row.refuses:  # a function of numbers that are counted or accumulated: it returns nothing with a graph
        found = f(row.x.clone().requires_grad_())
        assert found is None or not found.requires_grad
    else:
        expected = finite_differences(row.call, row.x, v)
        found = TAKE[way](f, row.x, v)
        scale = float(expected.abs().max())
        assert scale > 0
        if way in REVERSE:
            expected = (weights(expected) * expected).sum()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("row", [case for case in rows() if case.values[0].create_graph])
def test_without_create_graph_results_never_require_grad(row):
    x = row.x.clone().requires_grad_()
    found = row.call(x)
    assert not found.requires_grad and x.grad is None
    assert row.call(x, create_graph=True).requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(row.call(row.x.clone()), found)
            assert row.call(x, create_graph=True).requires_grad


@pytest.mark.parametrize("row", [case for case in rows() if case.values[0].per_image and not case.values[0].refuses])
def test_vmap_over_images_gives_what_each_gives(row):
    one = lambda x: row.call(x[None])
    expected = torch.stack([one(x) for x in row.x]).detach()
    torch.testing.assert_close(torch.func.vmap(one)(row.x).detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("model", [GRADRESNET, TORCH], ids=["GradResNet", "torch.nn"])
def test_the_hessian_of_log_prob_is_the_jacobian_of_the_score(model):
    log_prob = lambda y: cdn.log_prob(model, y[None])[0]
    hessian = torch.func.hessian(log_prob)(IMAGES[0])
    v = random(1, 4, 4, seed=8)
    expected = finite_differences(lambda y: cdn.score(model, y[None])[0], IMAGES[0], v)
    torch.testing.assert_close(along(hessian, v), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_tangents_of_parameters_reach_the_denoised_image():
    name, weight = next(iter(TORCH.named_parameters()))
    v = random(*weight.shape, seed=9)

    def of(value):
        with replaced(TORCH, {name: value}):
            return cdn.denoise(TORCH, IMAGES, 0.2)

    found = through_dual_numbers(of, weight.detach(), v)
    torch.testing.assert_close(found, finite_differences(of, weight.detach(), v), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("way", ["forward_ad", "torch.func.jvp", "torch.func.jacrev"])
def test_fused_kernels_refuse_what_they_cannot_follow(way):
    with pytest.raises(RuntimeError, match=r"gelu: impl='cpu' cannot run under torch.func .*; use impl='reference'"):
        TAKE[way](lambda x: cdn_kernels.gelu(x, impl="cpu"), FEATURES, FEATURES)
