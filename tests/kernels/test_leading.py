"""Gradients of which only the first samples count: the values of those with zeros, whatever is done with them."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import cdn
import cdn_kernels
from cdn_kernels import reference, score_matching_step
from cdn_kernels.backends import cpu
from cdn_kernels.backends.interface import BACKWARD, CONV_INPUT, NO_GROUPS
from cdn_kernels.ops import filters, leading
from cdn_kernels.ops.leading import RULES, LeadingGradient
from cdn_kernels.torch_private import tensors_in, tree_map
from tests.kernels.convolutions import nhwc
from tests.kernels.passes import LAYOUTS

needs_kernels = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
COUNT, BATCH, CHANNELS = 3, 5, 4


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def images(channels=CHANNELS):
    return draw(BATCH, channels, 6, 5).contiguous(memory_format=torch.channels_last)


def first(x):
    """Return what takes the place of x whose samples from COUNT on are zero."""
    return LeadingGradient(x[:COUNT].clone(memory_format=torch.preserve_format), len(x))


def norm_arguments(*given):
    """Return the arguments of a derivative of the norm of two groups."""
    x, gain = images(), draw(CHANNELS)
    statistics = torch.ops.cdn_kernels.gelu_group_norm(x, None, gain, 2, 0.1, True, "cpu")[2]
    return x, statistics, gain, *given, 2, 0.1, True, True, "cpu"


WEIGHT = torch.randn(6, CHANNELS, 3, 3, dtype=torch.float64)
SECOND = torch.randn(CHANNELS, CHANNELS, 3, 3, dtype=torch.float64)
SHAPE = [BATCH, CHANNELS, 6, 5]
NUMBER, ROWS = torch.tensor(3.0, dtype=torch.float64), draw(BATCH, 1)
ZERO, CHOICE = torch.tensor(0.0, dtype=torch.float64), torch.arange(BATCH)[:, None] % 2 == 0
# For every rule, arguments for which it applies.
APPLIES = {
    "cdn_kernels::conv2d": [lambda: (first(images()), WEIGHT, 2, "cpu")],
    "cdn_kernels::conv2d_input": [lambda: (first(images(6)), WEIGHT, SHAPE, 1, "cpu")],
    "cdn_kernels::conv2d_weight": [
        lambda: (first(images()), images(6), 3, 1, "cpu"),
        lambda: (images(), first(images(6)), 3, 1, "cpu"),
        lambda: (first(images()), first(images(6)), 3, 1, "cpu"),
    ],
    "cdn_kernels::conv2d_of_gelu_input": [
        lambda: (first(images()), SECOND, images(), None, True, "cpu"),
        lambda: (first(images()), SECOND, images(), first(images()), False, "cpu"),
        lambda: (images(), SECOND, images(), first(images()), False, "cpu"),
    ],
    "cdn_kernels::conv2d_of_gelu_weight": [lambda: (images(), images(), first(images(6)), 3, "cpu")],
    "cdn_kernels::gelu_backward": [
        lambda: (images(), first(images()), None, "cpu"),
        lambda: (images(), first(images()), first(images()), "cpu"),
        lambda: (images(), images(), first(images()), "cpu"),
    ],
    "cdn_kernels::gelu_tangent": [
        lambda: (images(), first(images()), first(images()), "cpu"),
        lambda: (images(), images(), first(images()), "cpu"),
    ],
    "cdn_kernels::gelu_group_norm_backward": [
        lambda: norm_arguments(first(images()), None),
        lambda: norm_arguments(first(images()), first(images())),
        lambda: norm_arguments(images(), first(images())),
    ],
    "cdn_kernels::gelu_group_norm_tangent": [
        lambda: norm_arguments(first(images()), first(images())),
        lambda: norm_arguments(images(), first(images())),
    ],
    "cdn_kernels::channel_mean": [lambda: (first(images()), "cpu")],
    "cdn_kernels::channel_spread": [lambda: (first(draw(BATCH, CHANNELS)), images(), "cpu")],
    "cdn_kernels::sample_square": [lambda: (first(images()), "cpu")],
    "cdn_kernels::sample_dot": [lambda: (first(images()), images(), "cpu"), lambda: (images(), first(images()), "cpu")],
    "cdn_kernels::sample_scale": [
        lambda: (images(), first(draw(BATCH)), "cpu"),
        lambda: (first(images()), draw(BATCH), "cpu"),
    ],
    "aten::mul.Tensor": [
        lambda: (first(images()), images()),
        lambda: (first(images()), first(images())),
        lambda: (images(), first(images())),
        lambda: (first(images()), NUMBER),
        lambda: (NUMBER, first(images())),
        lambda: (first(images()), draw(5)),
        lambda: (first(images()), draw(1, CHANNELS, 1, 1)),
        lambda: (first(draw(BATCH, 7)), ROWS),
    ],
    "aten::mul.Scalar": [lambda: (first(images()), 2.5)],
    "aten::div.Tensor": [lambda: (first(images()), images()), lambda: (first(images()), NUMBER)],
    "aten::div.Scalar": [lambda: (first(images()), 2.5)],
    "aten::add.Tensor": [
        lambda: (first(images()), first(images())),
        lambda: (images(), first(images())),
        lambda: (first(images()), images()),
    ],
    "aten::sub.Tensor": [lambda: (first(images()), first(images())), lambda: (images(), first(images()))],
    "aten::add_.Tensor": [lambda: (images(), first(images()))],
    **{name: [lambda: (first(images()),)] for name in ("aten::neg", "aten::detach", "aten::alias", "aten::_to_copy")},
    "aten::view": [lambda: (first(draw(BATCH, 4, 6)), [BATCH, 2, 12]), lambda: (first(draw(BATCH, 1)), [BATCH])],
    "aten::_unsafe_view": [lambda: (first(draw(BATCH, 4, 6)), [BATCH, 24])],
    "aten::expand": [lambda: (first(draw(BATCH, 1, 6)), [BATCH, 4, 6])],
    "aten::unsqueeze": [lambda: (first(draw(BATCH, 4)), 1), lambda: (first(draw(BATCH, 4)), -1)],
    "aten::squeeze.dim": [lambda: (first(draw(BATCH, 1)), 1), lambda: (first(draw(BATCH, 1)), -1)],
    "aten::select.int": [lambda: (first(draw(BATCH, 4)), 1, 2), lambda: (first(draw(BATCH, 4)), -1, 0)],
    "aten::slice.Tensor": [lambda: (first(draw(BATCH, 4)), 1, 1, 3), lambda: (first(draw(BATCH, 4)), -1, 0, 4, 2)],
    "aten::select_backward": [lambda: (first(draw(BATCH)), [BATCH, 4], 1, 2)],
    "aten::slice_backward": [lambda: (first(draw(BATCH, 2)), [BATCH, 4], 1, 1, 3, 1)],
    "aten::sum.dim_IntList": [
        lambda: (first(images()), [1, 2, 3], True),
        lambda: (first(images()), [0, 2, 3], True),
        lambda: (first(images()), [-4]),
    ],
    "aten::mm": [lambda: (first(draw(BATCH, 4)), draw(4, 6)), lambda: (draw(6, BATCH), first(draw(BATCH, 4)))],
    "aten::where.self": [lambda: (CHOICE, ZERO, first(draw(BATCH, 4))), lambda: (CHOICE, first(draw(BATCH, 4)), ZERO)],
}
# Arguments that are none of a rule's, and operations that have none.
FALLS_BACK = {
    "a gradient without zeros": ("cdn_kernels::gelu_backward", lambda: (images(), first(images()), images(), "cpu")),
    "a tangent without zeros": ("cdn_kernels::gelu_tangent", lambda: (images(), first(images()), images(), "cpu")),
    "other zeros": ("aten::add.Tensor", lambda: (first(images()), LeadingGradient(images()[:1], BATCH))),
    "more dimensions": ("aten::mul.Tensor", lambda: (first(draw(BATCH)), draw(4, BATCH))),
    "the divisor": ("aten::div.Tensor", lambda: (images(), first(images()))),
    "of other shapes": ("aten::add.Tensor", lambda: (first(images()), draw(1, CHANNELS, 1, 1))),
    "a number is added": ("aten::add.Tensor", lambda: (first(images()), NUMBER)),
    "from one that has none": ("aten::sub.Tensor", lambda: (first(images()), images())),
    "samples in another place": ("aten::view", lambda: (first(draw(BATCH, 4)), [4, BATCH])),
    "more in front": ("aten::expand", lambda: (first(draw(BATCH, 4)), [BATCH, BATCH, 4])),
    "one more in front": ("aten::unsqueeze", lambda: (first(draw(BATCH, 4)), 0)),
    "one sample": ("aten::select.int", lambda: (first(draw(BATCH, 4)), 0, 1)),
    "some samples": ("aten::slice.Tensor", lambda: (first(draw(BATCH, 4)), 0, 1, 4)),
    "two products": ("aten::mm", lambda: (first(draw(BATCH, 4)), LeadingGradient(draw(2, 6), 4))),
    "or something else": ("aten::where.self", lambda: (CHOICE, NUMBER, first(draw(BATCH, 4)))),
    "all of it": ("aten::sum.dim_IntList", lambda: (first(images()), None)),
    "dimensions that go": ("aten::sum.dim_IntList", lambda: (first(images()), [2, 3])),
    "no rule": ("aten::exp", lambda: (first(images()),)),
    "a list": ("aten::cat", lambda: ([first(images()), images()], 1)),
}


def operation(name):
    namespace, _, called = name.partition("::")
    packet, _, overload = called.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def values(tree):
    return tree_map(lambda t: t.value() if isinstance(t, LeadingGradient) else t, tree)


def assert_same_values(name, make):
    torch.manual_seed(0)
    args = make()
    plain = tree_map(lambda t: t.clone(memory_format=torch.preserve_format), values(args))
    with torch.no_grad():
        found, expected = operation(name)(*args), operation(name)(*plain)
    for a, b in zip(tensors_in([found]), tensors_in([expected]), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(values(a), b, rtol=1e-12, atol=1e-12)
    return found


def test_every_rule_has_its_cases():
    assert set(APPLIES) == set(RULES)


@needs_kernels
@pytest.mark.parametrize("name, make", [(name, make) for name, made in APPLIES.items() for make in made])
def test_where_a_rule_applies_no_zeros_are_made(monkeypatch, name, make):
    filled, value = [], LeadingGradient.value
    torch.manual_seed(0)
    args = make()
    monkeypatch.setattr(LeadingGradient, "value", lambda self: [filled.append(self), value(self)][1])
    with torch.no_grad():
        operation(name)(*args)
    assert not filled
    assert_same_values(name, make)


@needs_kernels
@pytest.mark.parametrize("name, make", FALLS_BACK.values(), ids=FALLS_BACK)
def test_anything_else_gets_the_zeros(name, make):
    found = assert_same_values(name, make)
    assert not any(isinstance(t, LeadingGradient) for t in tensors_in([found]))


@needs_kernels
def test_batch_normalization_mixes_samples():
    x, gain, grad = draw(BATCH, 2, 3, 1), draw(2), draw(BATCH, 2, 3, 1)
    statistics = torch.ops.cdn_kernels.group_norm(x, gain, None, NO_GROUPS, 0.1, "cpu")[1]
    assert "cdn_kernels::group_norm_backward" not in RULES
    args = x, statistics, gain, first(grad), NO_GROUPS, 0.1, True, "cpu"
    found = assert_same_values("cdn_kernels::group_norm_backward", lambda: args)
    assert found[0][COUNT:].any()


@pytest.mark.parametrize("change", [lambda g: g.mul_(2), lambda g: g.add_(1), lambda g: g.add_(g), lambda g: g.zero_()])
def test_what_is_changed_in_place_has_all_values(change):
    x = images()
    gradient, expected = first(x), first(x).value()
    assert change(gradient) is gradient and torch.equal(gradient.value(), change(expected))
    with torch.no_grad():
        assert torch.equal(values(gradient * x), expected * x)
        assert torch.equal(values(first(x) + gradient), first(x).value() + expected)


def test_shapes_are_not_changed_in_place():
    with pytest.raises(RuntimeError, match="unsqueeze_.default cannot change a gradient of cdn_kernels in place"):
        first(images()).unsqueeze_(0)


@pytest.mark.parametrize("function", [lambda x: leading.leading(x, 2), leading.filled], ids=["leading", "filled"])
def test_derivatives_of_the_two_ends(function):
    x = draw(4, 3).requires_grad_()
    curved = lambda x: function(x.sin()).square() * function(x)
    assert gradcheck(curved, x) and gradgradcheck(curved, x)


# ------------------------------------------------------------------------------------------------------------
# In kernels: sources of the first samples only
# ------------------------------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(5, 16, 9, 7), (3, 3, 5, 5), (4, 40, 4, 4)], ids=str)
def test_images_without_a_source_are_as_if_it_were_zero(dtype, shape):
    torch.manual_seed(0)
    draw = lambda: torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    g, u, source = draw(), draw(), draw()
    weight = torch.randn(shape[1], shape[1], 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    gain = torch.rand(shape[1], dtype=reference.compute_dtype(dtype))
    statistics = torch.ops.cdn_kernels.gelu_group_norm(u, None, gain, 1, 0.1, True, "cpu")[2]
    for count in range(1, shape[0] + 1):
        part, _ = nhwc(count, *shape[1:], fill=source[:count], dtype=dtype)  # nan follows it
        zeros = source.clone(memory_format=torch.preserve_format)
        zeros[count:] = 0
        for threads in (1, 2):
            for capability in cpu.USABLE:
                given = dict(threads=threads, engine=f"winograd_{capability}")
                found, expected = (torch.empty_like(g) for _ in range(2))
                for out, added in ((found, part), (expected, zeros)):
                    cpu.conv2d(CONV_INPUT, g, weight, out, (shape, weight.shape), 1, u=u, added=added, **given)
                assert torch.equal(found, expected)
                given = dict(threads=threads, capability=capability, statistics=statistics, grad=g)
                for out, added in ((found, part), (expected, zeros)):
                    cpu.gelu_norm(BACKWARD, u, gain, 1, 0.1, True, True, out=out, source=added, **given)
                assert torch.equal(found, expected)


@needs_kernels
def test_more_sources_than_samples_are_refused():
    x, weight = images().float(), SECOND.float().contiguous(memory_format=torch.channels_last)
    many = torch.cat([x, x])
    with pytest.raises(RuntimeError, match="refused its arguments"):
        cpu.conv2d(CONV_INPUT, x, weight, torch.empty_like(x), (x.shape, weight.shape), 1, u=x, added=many)
    gain, statistics = torch.ones(CHANNELS), torch.empty(BATCH, 9)
    with pytest.raises(RuntimeError, match="refused its arguments"):
        options = dict(statistics=statistics, out=torch.empty_like(x), grad=x, source=many)
        cpu.gelu_norm(BACKWARD, x, gain, 2, 0.1, True, True, **options)


# ------------------------------------------------------------------------------------------------------------
# In a step
# ------------------------------------------------------------------------------------------------------------

NETWORKS = {
    "log-energy": lambda: cdn.GradResNet(3, 2, width=8, blocks=(1, 1)),
    "quadratic": lambda: cdn.GradResNet(3, 2, width=8, blocks=(1, 1), head="quadratic"),
    "linear plain": lambda: cdn.GradResNet(3, 2, width=8, blocks=(2, 1), head="linear", norm="plain"),
    "homogeneous": lambda: cdn.GradResNet(3, 2, width=8, blocks=(1, 1), homogeneous=True),
}


def recomputing():
    model = NETWORKS["log-energy"]()
    model.trunk.recompute = True
    return model


def of_torch():
    layers = nn.Conv2d(2, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.GELU()
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 6), nn.Mish())


ALL_NETWORKS = NETWORKS | {"recomputing": recomputing, "of torch": of_torch}
LABELS = torch.tensor([0, 2, 1, 1, 2])
Y = torch.rand(BATCH, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss(outputs, score):
    return reference.cross_entropy(outputs, LABELS) + score[:COUNT].square().mean()


def gradients(model, y, **options):
    model = copy.deepcopy(model)
    step = score_matching_step(model, y, loss, **options)
    return step, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=needs_kernels)])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", ALL_NETWORKS.values(), ids=ALL_NETWORKS)
def test_a_step_gives_what_the_scores_of_all_give(monkeypatch, make, layout, impl):
    monkeypatch.setattr(filters, "FEWEST_FILTERS", 1)
    torch.manual_seed(0)
    model, y = make().double().to(memory_format=layout), Y.contiguous(memory_format=layout)
    whole, expected = gradients(model, y, impl=impl)
    step, found = gradients(model, y, impl=impl, scored=COUNT)
    assert step.score.shape == Y[:COUNT].shape and type(step.score) is torch.Tensor
    torch.testing.assert_close(tuple(step), (whole.loss, whole.outputs, whole.score[:COUNT]), rtol=1e-12, atol=1e-12)
    for a, b in zip(found, expected):
        assert type(a) is torch.Tensor
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12 * float(b.abs().max()))
    same, again = gradients(model, y, impl=impl, scored=BATCH)
    assert torch.equal(same.score, whole.score) and all(map(torch.equal, again, expected))


@needs_kernels
@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_of_the_package_compute_no_scores_of_others(monkeypatch, make, rounded):
    """Images of zeros are made nowhere: only matrices of the head are turned, which no rule follows."""
    seen, run = set(), leading.run_on_values
    monkeypatch.setattr(leading, "run_on_values", lambda func, *rest: [seen.add(func.name()), run(func, *rest)][1])
    torch.manual_seed(0)
    model = make().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        y = Y.float().contiguous(memory_format=torch.channels_last)
        step, found = gradients(model, y, impl="cpu", scored=COUNT)
    assert seen <= {"aten::t"}
    assert step.loss.isfinite() and all(g.isfinite().all() and g.any() for g in found)


def test_without_wrapper_tensors_the_zeros_are_there(monkeypatch):
    torch.manual_seed(0)
    model = NETWORKS["log-energy"]().double()
    _, expected = gradients(model, Y, scored=COUNT)
    monkeypatch.setattr(leading.WrapperTensor, "exists", False)
    monkeypatch.setattr(leading._Extended, "apply", None)
    _, found = gradients(model, Y, scored=COUNT)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@needs_kernels
def test_samples_that_require_grad_and_hooks_get_ordinary_gradients():
    torch.manual_seed(0)
    model, hooked = NETWORKS["quadratic"]().double(), []
    (parameter, *_) = model.parameters()
    parameter.register_hook(hooked.append)
    both = []
    for scored in (None, COUNT):
        y = Y.clone().requires_grad_()
        score_matching_step(model, y, lambda outputs, score: score[:COUNT].square().sum(), impl="cpu", scored=scored)
        both.append(y.grad)
    assert all(type(g) is torch.Tensor for g in [*both, *hooked]) and len(hooked) == 2
    torch.testing.assert_close(both[1], both[0], rtol=1e-11, atol=1e-11)
    assert both[1][:COUNT].any() and not both[1][COUNT:].any()


@pytest.mark.parametrize(
    "network, y, scored, error, message",
    [
        (nn.Flatten(), Y, 0, ValueError, r"scored must be in \[1, 5\], the samples of y, got 0"),
        (nn.Flatten(), Y, 6, ValueError, r"scored must be in \[1, 5\], the samples of y, got 6"),
        (nn.Flatten(), Y, 2.0, TypeError, "scored must be a number of samples of a tensor y, got 2.0 and a tensor"),
        (nn.Flatten(), Y, True, TypeError, "scored must be a number of samples of a tensor y, got True and a tensor"),
        (nn.Flatten(), (Y,), 2, TypeError, "scored must be a number of samples of a tensor y, got 2 and tuple"),
        (torch.sum, Y, 2, ValueError, r"with scored, network must return a tensor \[5, ...\], got \[\]"),
        (lambda y: (y,), Y, 2, ValueError, r"with scored, network must return a tensor \[5, ...\], got tuple"),
    ],
)
def test_bad_numbers_get_one_sentence(network, y, scored, error, message):
    with pytest.raises(error, match=message) as caught:
        cdn_kernels.score_matching_step(network, y, lambda outputs, score: score.sum(), scored=scored)
    assert "\n" not in str(caught.value)
