"""The training step: gradients of plain autograd, accumulation, frozen parameters, hooks, foreign blocks, refusals."""

import gc
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cdn_kernels
from cdn_kernels import step as step_file
from cdn_kernels.backends import cpu, cpu_engines
from cdn_kernels.ops import torch_functions
from tests.kernels import convolutions

IMPLS = ["reference", pytest.param("auto", marks=pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING)))]
pytestmark = pytest.mark.filterwarnings("ignore:score_matching_step runs")


class Pool(nn.Module):
    def forward(self, h):
        return cdn_kernels.channel_mean(h)


def library():
    return nn.Sequential(
        cdn_kernels.ConvGELU(3, 8),
        cdn_kernels.GELUGroupNorm(2, 8),
        cdn_kernels.ConvGELU(8, 8, stride=2),
        Pool(),
        nn.Linear(8, 4),
    )


def mixed():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        cdn_kernels.GELUGroupNorm(2, 8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.SiLU(inplace=True),
        cdn_kernels.ConvGELU(8, 4),
        Pool(),
        nn.Linear(4, 4),
    )


def purely_foreign():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, padding=1),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.ConvTranspose2d(8, 8, 2, 2, bias=False),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Conv2d(8, 4, 3, padding="same", padding_mode="circular"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 4),
    )


@pytest.fixture(autouse=True)
def every_convolution(monkeypatch):
    """Those of networks this small are otherwise left to torch."""
    monkeypatch.setattr(torch_functions, "CHOICE", "all")


NETWORKS = pytest.mark.parametrize("make", [library, mixed, purely_foreign])
LABELS = torch.tensor([0, 3, 1])


def samples(dtype=torch.float64, size=6):
    return torch.randn(3, 3, size, size, dtype=dtype)


def joint(outputs, score):
    return (
        F.cross_entropy(outputs.float() if outputs.dtype == torch.bfloat16 else outputs, LABELS)
        + 0.1 * (score + 1).square().mean()
    )


def by_hand(network, y, loss=joint, density=lambda outputs: outputs.logsumexp(1)):
    """Return loss, outputs and score by plain autograd, which has then filled .grad."""
    y = y if y.requires_grad else y.clone().requires_grad_()
    with cdn_kernels.using("reference"):
        outputs = network(y)
        (score,) = torch.autograd.grad(density(outputs).sum(), y, create_graph=True)
        total = loss(outputs, score)
        total.backward()
    return total, outputs, score


def gradients(network):
    return [p.grad for p in network.parameters()]


def assert_equal(mine, exact, rtol=1e-9, atol=1e-12):
    for a, b in zip(mine, exact, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def pair(make):
    mine, theirs = make().double(), make().double()
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


@NETWORKS
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_gradients_are_those_of_autograd(make, impl, layout):
    mine, theirs = pair(make)
    mine.to(memory_format=layout)
    y = samples().contiguous(memory_format=layout)
    for _ in range(2):  # the second call accumulates
        step = cdn_kernels.score_matching_step(mine, y, joint, impl=impl)
        assert_equal(step, [t.detach() for t in by_hand(theirs, y)])
        assert_equal(gradients(mine), gradients(theirs))
    assert_equal([b.double() for b in mine.buffers()], [b.double() for b in theirs.buffers()])
    assert not any(t.requires_grad for t in step) and y.grad is None and not y.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_are_left_as_found(mode):
    mine, theirs = pair(mixed)
    y = samples()
    with mode():
        before = torch.is_grad_enabled()
        cdn_kernels.score_matching_step(mine, y.clone(), joint)
        assert torch.is_grad_enabled() == before
    by_hand(theirs, y)
    assert_equal(gradients(mine), gradients(theirs))


def test_energy_models_and_other_densities():
    mine, theirs = pair(library)
    y = samples()
    for wrap, density in (
        (lambda net: lambda y: net(y)[:, 0], None),
        (lambda net: net, lambda f: f[:, 1] - f[:, 0]),
        (lambda net: lambda y: dict(f=net(y)), lambda outputs: outputs["f"].square().sum(1)),
    ):
        penalty = lambda outputs, score: (score.flatten(1).norm(dim=1) - 1).square().mean()
        step = cdn_kernels.score_matching_step(wrap(mine), y, penalty, log_density=density)
        by_hand(wrap(theirs), y, penalty, density or (lambda outputs: outputs))
        assert_equal(gradients(mine), gradients(theirs))
    assert not step.outputs["f"].requires_grad


def test_the_score_needs_no_channels():
    network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    y = torch.randn(4, 5, dtype=torch.float64)
    step = cdn_kernels.score_matching_step(network, y, lambda outputs, score: score.square().mean())
    torch.testing.assert_close(step.score, cdn_kernels.score(network, y))


def test_samples_that_require_grad_get_theirs():
    mine, theirs = pair(mixed)
    leaf, other = samples().requires_grad_(), torch.ones((), dtype=torch.float64, requires_grad=True)
    by_hand(theirs, leaf)
    expected, leaf.grad = leaf.grad, None
    cdn_kernels.score_matching_step(mine, leaf, joint)
    torch.testing.assert_close(leaf.grad, expected)
    cdn_kernels.score_matching_step(mine, leaf.detach() * other, joint)
    torch.testing.assert_close(other.grad, (leaf.detach() * expected).sum())


@NETWORKS
def test_frozen_parameters_get_nothing(make):
    mine, theirs = pair(make)
    for network in (mine, theirs):
        for parameter in list(network.parameters())[:3]:
            parameter.requires_grad_(False)
    y = samples()
    cdn_kernels.score_matching_step(mine, y, joint)
    by_hand(theirs, y)
    assert_equal(gradients(mine), gradients(theirs))
    assert gradients(mine)[0] is None


@pytest.fixture
def sparing(monkeypatch):
    """No samples are so few that their gradient is taken although nobody asked for it."""
    monkeypatch.setattr("cdn_kernels.step._MOST_UNASKED", 0)


@pytest.mark.usefixtures("sparing")
def test_nothing_is_computed_for_a_network_without_parameters_to_train():
    network = library().requires_grad_(False)
    with torch.profiler.profile() as profile:
        step = cdn_kernels.score_matching_step(network, samples(torch.float32), joint)
    assert step.loss.isfinite() and gradients(network) == [None] * len(list(network.parameters()))
    assert not any("conv2d_weight" in event.key or "tangent" in event.key for event in profile.key_averages())


@pytest.mark.usefixtures("sparing")
def test_the_gradient_of_samples_that_need_none_is_left_out():
    network = library()
    calls = []
    for y in (samples(torch.float32), samples(torch.float32).requires_grad_()):
        with torch.profiler.profile() as profile:
            cdn_kernels.score_matching_step(network, y, joint)
        calls.append(
            sum(e.count for e in profile.key_averages() if "convolution_backward" in e.key or "conv2d_input" in e.key)
        )
    assert calls[0] < calls[1]


def test_hooks_fire_once_a_step():
    network, fired = mixed().double(), []
    weight = network[0].weight
    weight.register_hook(lambda g: fired.append("tensor") or 2 * g)
    weight.register_post_accumulate_grad_hook(lambda p: fired.append("accumulated"))
    network[0].register_full_backward_hook(lambda *_: fired.append("module"))
    twin = mixed().double()
    twin.load_state_dict(network.state_dict())
    y = samples()
    cdn_kernels.score_matching_step(network, y, joint)
    assert fired.count("tensor") == fired.count("accumulated") == 1
    by_hand(twin, y)
    torch.testing.assert_close(weight.grad, 2 * twin[0].weight.grad)


class Convolutions(TorchDispatchMode):
    """Collect the convolutions that run: the largest side of their filters, and which of them are weight gradients."""

    def __init__(self):
        super().__init__()
        self.sides, self.weight_gradients = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.sides.append(max(args[1].shape[2:]))
        if func is torch.ops.aten.convolution_backward.default:
            self.sides.append(max(args[2].shape[2:]))
            self.weight_gradients += args[-1][1]
        return func(*args, **(kwargs or {}))


def conv_net(wrap=lambda module: module):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.GELU(),
        wrap(nn.Conv2d(4, 4, 3, padding=1)),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


class Foreign(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *inputs):
        return cdn_kernels.foreign(self.block, *inputs)


def penalty(outputs, score):
    return score.square().mean()


@pytest.mark.parametrize("network, frozen", [(conv_net(), 0), (conv_net(), 1), (conv_net(Foreign), 0)])
def test_six_convolutions_a_layer_and_none_of_the_size_of_images(network, frozen):
    network[0].weight.requires_grad_(not frozen)
    with Convolutions() as convolutions:
        cdn_kernels.score_matching_step(network, samples(torch.float32, 12), penalty)
    assert max(convolutions.sides) == 3
    if not any(isinstance(module, Foreign) for module in network):
        # Two for each layer, one from the score's tangent and one from the adjoint, in five calls.
        assert convolutions.weight_gradients == (2 if frozen else 4)
        assert len(convolutions.sides) == 2 * 5 - frozen
    with Convolutions() as plain:
        by_hand(conv_net(), samples(torch.float32, 12), penalty)
    assert max(plain.sides) > 3


@pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
@pytest.mark.usefixtures("sparing")
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_of_torch_run_in_faster_kernels_where_there_are_any(monkeypatch, bias):
    monkeypatch.setattr(cpu_engines, "CHOICE", "winograd")
    calls = convolutions.maps_that_run(monkeypatch, cpu)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding="same", bias=bias),
        nn.SiLU(inplace=True),
        nn.Conv2d(5, 5, (3, 3), padding=(1, 1), bias=bias),
        nn.GELU(),
        nn.Conv2d(5, 4, 3, 3, padding=1, bias=bias),  # no kernel takes its stride
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).double()
    y = samples(size=7).contiguous(memory_format=torch.channels_last)
    with pytest.warns(UserWarning, match="runs Conv2d '4' in torch's kernels"):
        cdn_kernels.score_matching_step(network, y, joint)
    # Six of the second layer, five of the first, whose images have no adjoint.
    kinds = [kind for kind, *_ in calls]
    assert [kinds.count(kind) for kind in convolutions.MAPS] == [4, 3, 4]
    mine = gradients(network)
    network.zero_grad()
    by_hand(network, y, joint)
    assert_equal(mine, gradients(network))
    with pytest.raises(RuntimeError, match="expected input.* to have 3 channels"):
        cdn_kernels.score_matching_step(network, y.repeat(1, 2, 1, 1), joint)


def test_convolutions_that_could_be_replaced_are_named_once_a_network():
    y = samples()
    message = "runs Conv2d '0' in torch's kernels; channels last they may run in the library's"
    for network in (mixed().double(), mixed().double()):  # which has one that could not be replaced, too
        calls = network, network.forward, lambda y, network=network: network(y), lambda y: network(y)
        with pytest.warns(UserWarning, match=message) as caught:
            for call in calls:
                for _ in range(2):
                    cdn_kernels.score_matching_step(call, y, joint)
        assert len(caught) == 1 and caught[0].filename == __file__


FUNCTION_OF_ITS_OWN = mixed().double()


def test_convolutions_of_functions_are_named_by_their_filters_once(monkeypatch):
    monkeypatch.setattr(step_file, "_said", set())
    with pytest.warns(
        UserWarning, match=r"runs a convolution with filters \[8, 3, 3, 3\] in torch's kernels"
    ) as caught:
        for _ in range(2):
            cdn_kernels.score_matching_step(lambda y: FUNCTION_OF_ITS_OWN(y), samples(), joint)
    assert len(caught) == 1


def test_where_nothing_could_be_replaced_nothing_is_said():
    depthwise = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Tanh(), nn.Flatten()).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for network in (depthwise, library().double()):
            cdn_kernels.score_matching_step(network, samples(), joint if network is not depthwise else penalty)
        cdn_kernels.score_matching_step(mixed().double(), samples(), joint, impl="reference")


@pytest.mark.parametrize("impl", IMPLS)
def test_attention_is_differentiated_twice(impl):
    network = nn.Sequential(
        nn.TransformerEncoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True), nn.Flatten(), nn.Linear(30, 2)
    ).double()
    y = torch.randn(3, 5, 6, dtype=torch.float64)
    cdn_kernels.score_matching_step(network, y, penalty, impl=impl)
    mine = [g.clone() for g in gradients(network)]
    network.zero_grad()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        by_hand(network, y, penalty)
    assert_equal(mine, gradients(network))


@NETWORKS
@pytest.mark.parametrize("inside", [False, True], ids=["around the network", "around the step"])
def test_half_precision(make, inside):
    """Under autocast the step differentiates what plain autograd does, to the rounding of bfloat16."""
    mine, theirs, y = make(), make(), samples(torch.float32)
    theirs.load_state_dict(mine.state_dict())

    def network(y):
        with torch.autocast("cpu", torch.bfloat16):
            return mine(y)

    with torch.autocast("cpu", torch.bfloat16, enabled=inside):
        cdn_kernels.score_matching_step(mine if inside else network, y, joint)
    by_hand(theirs, y)
    for a, b in zip(gradients(mine), gradients(theirs)):
        assert a.dtype == torch.float32 and (a - b).norm() <= 0.05 * b.norm() + 2e-3


@pytest.mark.parametrize("make", [conv_net, lambda: conv_net(Foreign)], ids=["convolutions", "foreign"])
@pytest.mark.parametrize("failing", [False, True])
def test_graphs_die_without_the_garbage_collector(make, failing):
    network, seen = make(), []
    network[2].register_forward_hook(lambda module, inputs, output: seen.append(weakref.ref(output)))

    def loss(outputs, score):
        return penalty(outputs, score) if not failing else 1 / 0

    gc.disable()
    try:
        cdn_kernels.score_matching_step(network, samples(torch.float32), loss)
    except ZeroDivisionError:
        pass
    finally:
        gc.enable()
    assert seen and all(reference() is None for reference in seen)


def test_an_exception_leaves_no_trace():
    network, y = mixed().double(), samples()
    state = {name: dict(vars(module)) for name, module in network.named_modules()}

    def fail(outputs, score):
        raise ArithmeticError("no")

    for arguments in ((network, y, fail), (lambda y: fail(network(y), None), y, joint)):
        with pytest.raises(ArithmeticError):
            cdn_kernels.score_matching_step(*arguments)
    assert torch.overrides._get_current_function_mode() is None and torch.is_grad_enabled()
    assert all(g is None for g in gradients(network)) and not y.requires_grad
    for name, module in network.named_modules():
        assert vars(module).keys() == state[name].keys()
    assert type(network[0](y).grad_fn).__name__ == "ConvolutionBackward0"


Y = torch.ones(2, 3)
LINEAR = nn.Linear(3, 2)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((3, Y, penalty), {}, TypeError, "network must be a function or a module, got int"),
        ((LINEAR, Y, 1.0), {}, TypeError, "loss must be a function or a module, got float"),
        ((LINEAR, Y, penalty), dict(log_density=2), TypeError, "log_density must be a function or a module, got int"),
        ((LINEAR, Y.long(), penalty), {}, TypeError, "y must be a tensor of floats, .*, got torch.int64"),
        ((LINEAR, [1.0], penalty), {}, TypeError, "y must be a tensor of floats, or a tuple or dict .*, got list"),
        ((LINEAR, (1, Y.long()), penalty), {}, TypeError, "y must be a tensor of floats, or a tuple .*, got tuple"),
        ((LINEAR, Y[0, 0], penalty), {}, ValueError, r"y must be samples \[B, ...\], got a 0-d tensor"),
        ((LINEAR, Y, penalty), dict(impl="fast"), ValueError, "impl must be one of"),
        (
            (lambda y: y[..., None], Y, penalty),
            {},
            ValueError,
            r"log-densities \[B\] or logits \[B, C\], got \[2, 3, 1\]",
        ),
        ((lambda y: (y, y), Y, penalty), {}, ValueError, "without log_density, network must return .*, got tuple"),
        ((LINEAR, Y, penalty), dict(log_density=lambda f: 1.0), TypeError, "log_density must return a .*, got float"),
        (
            (LINEAR, Y, penalty),
            dict(log_density=torch.argmax),
            TypeError,
            "log_density must return .*, got torch.int64",
        ),
        ((lambda y: LINEAR(y.detach()), Y, penalty), {}, ValueError, "does not depend on y through differentiable"),
        ((lambda y: LINEAR(y).detach(), Y, penalty), {}, ValueError, "does not depend on y through differentiable"),
        ((LINEAR, Y, lambda outputs, score: 1.0), {}, TypeError, "loss must return a tensor of floats, got float"),
        ((LINEAR, Y, lambda outputs, score: score), {}, ValueError, r"loss must return a scalar, got \[2, 3\]"),
        (
            (LINEAR, Y, lambda outputs, score: score.detach().sum()),
            {},
            ValueError,
            "loss must depend on outputs or score",
        ),
    ],
)
def test_bad_input_gets_one_sentence(arguments, options, error, message):
    with pytest.raises(error, match=message) as caught:
        cdn_kernels.score_matching_step(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_transforms_are_refused():
    with pytest.raises(RuntimeError, match="cannot be accumulated under torch.func transforms"):
        torch.func.grad(lambda y: cdn_kernels.score_matching_step(LINEAR, y, penalty).loss)(Y)


def test_empty_batches_pass_through():
    network = library()
    cdn_kernels.score_matching_step(network, samples(torch.float32)[:0], lambda f, s: s.sum() + f.sum())
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in network.parameters())
