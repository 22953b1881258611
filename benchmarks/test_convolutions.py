"""The library's own convolutions against PyTorch's, map by map, on the layers of GradResNet-18 at width 64."""

import functools
import itertools

import pytest
import torch

import cdn_kernels
from benchmarks.harness.agreement import agreement
from benchmarks.harness.ceilings import Work
from benchmarks.harness.workers import refusing
from benchmarks.steps import DTYPES
from cdn_kernels.backends import cpu, dispatch
from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT
from cdn_kernels.ops import convolve

full = pytest.mark.full
MAPS = {
    "forward": CONV_FORWARD,
    "forward, GELU": CONV_FORWARD,
    "by the input": CONV_INPUT,
    "by the input, GELU": CONV_INPUT,
    "by the filters": CONV_WEIGHT,
}
# (inputs, outputs, side of the image, side of the filters, stride)
LAYERS = [
    (64, 64, 32, 3, 1),
    (128, 128, 16, 3, 1),
    (256, 256, 8, 3, 1),
    (512, 512, 4, 3, 1),
    (64, 128, 32, 3, 2),
    (128, 256, 16, 3, 2),
    (256, 512, 8, 3, 2),
    (64, 128, 32, 5, 2),
    (128, 256, 16, 5, 2),
    (64, 128, 32, 1, 2),
    (128, 256, 16, 1, 2),
    (256, 512, 8, 1, 2),
]
TOLERANCE = {"float32": 1e-4, "bf16": 0.01}  # of the norm
BATCH = {"cpu": 64, "cuda": 512}
NHWC = dict(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(
            layer,
            marks=full if layer[-1] > 1 else pytest.mark.no_smoke if layer != LAYERS[0] else (),
            id=("{}-{}-side{}-{}x{}-stride{}".format(*layer[:4], layer[3], layer[4])),
        )
        for layer in LAYERS
    ],
)
@pytest.mark.parametrize("precision", ["bf16", pytest.param("float32", marks=full)])
@pytest.mark.parametrize("name", MAPS)
def test_convolution(paired, settings, name, precision, layer):
    inputs, outputs, side, size, stride = layer
    dtype = DTYPES[precision]
    draw = lambda *shape: torch.randn(shape, device=settings.device).to(dtype).contiguous(**NHWC)
    x = draw(*settings.shape((BATCH[settings.device], inputs, side, side)))
    if settings.library == "cpu":
        shape = x.shape, (outputs, inputs, size, size)
        if not cpu.conv2d_is_faster(MAPS[name], x, shape, stride, "GELU" in name):
            pytest.skip("torch runs this convolution, or the library's has no epilogue for it")
    weight = draw(outputs, inputs, size, size) / size / inputs**0.5
    g = torch.randn_like(convolve.empty_forward(x, weight, stride, settings.library))
    options = [stride] * 2, [size // 2] * 2, [1, 1], False, [0, 0], 1

    def own(backend=settings.library, **chosen):
        kind = MAPS[name]
        first, second, like = {CONV_FORWARD: (x, weight, g), CONV_INPUT: (g, weight, x), CONV_WEIGHT: (x, g, weight)}[
            kind
        ]
        out, more = torch.empty_like(like), {}
        if "GELU" in name:
            more = dict(activation=torch.empty_like(like)) if kind == CONV_FORWARD else dict(u=x)
        dispatch.kernels(backend).conv2d(kind, first, second, out, (x.shape, weight.shape), stride, **more, **chosen)
        return [out, *(more.values() if kind == CONV_FORWARD else ())]

    def torchs():
        if MAPS[name] == CONV_FORWARD:
            u = torch.ops.aten.convolution(x, weight, None, *options)
            return [u, torch.ops.cdn_kernels.gelu(u, settings.library)] if "GELU" in name else [u]
        mask = [MAPS[name] == CONV_INPUT, MAPS[name] == CONV_WEIGHT, False]
        found = torch.ops.aten.convolution_backward(g, x, weight, None, *options, mask)[MAPS[name] == CONV_WEIGHT]
        return [torch.ops.cdn_kernels.gelu_backward(x, found, None, settings.library) if "GELU" in name else found]

    peers = {"PyTorch": torchs, **{backend: refusing(functools.partial(own, backend)) for backend in settings.others}}
    work = Work(2 * g.numel() * weight[0].numel(), dtype=dtype)
    if settings.library == "cpu" and size == 5 and precision == "float32":
        work = Work(work.flops * 121 // 400, dtype=dtype)
    if settings.library == "cpu" and size == 3 and stride == 1:
        # What minimal filtering leaves of the products, which it computes in float32.
        work = Work(work.flops // 4, dtype=torch.float32)
        if cpu.ENGINE and precision == "bf16" and name != "by the input, GELU":
            peers["direct"] = functools.partial(own, engine=cpu.ENGINE)
    paired(
        f"convolution {name}: {tuple(x.shape)}, {outputs} filters of {size}x{size}, stride {stride}, {precision}",
        ("this library", own),
        peers,
        work,
        agreement(own, TOLERANCE[precision]),
        operation="convolution",
        map=name,
        layer=layer,
        batch=len(x),
        dtype=precision,
        backend=settings.library,
    )


# How many convolutions of a GradResNet-18 have stride 1, by layer.
REPEATED = dict(zip(LAYERS, (4, 3, 3, 3)))


@pytest.mark.parametrize("precision", ["bf16", pytest.param("float32", marks=full)])
def test_six_units(paired, settings, precision):
    """What a joint step calls of its 13 convolutions with stride 1: the three maps of each, twice."""
    draw = lambda *shape: torch.randn(settings.shape(shape), device=settings.device).to(DTYPES[precision], **NHWC)
    layers = []
    for (channels, _, side, *_), times in REPEATED.items():
        x, g = draw(BATCH[settings.device], channels, side, side), draw(BATCH[settings.device], channels, side, side)
        weight = (torch.randn(channels, channels, 3, 3) / 3 / channels**0.5).to(x.device, x.dtype, **NHWC)
        layers += [(x, weight, g)] * times

    def units(forward, by_input, by_weight):
        def run():
            results = []
            for x, weight, g in layers * 2:
                results = [forward(x, weight), by_input(g, weight, x), by_weight(x, g, weight)]
            return results

        return run

    backend, options = settings.library, ([1] * 2, [1] * 2, [1, 1], False, [0, 0], 1)
    backward = torch.ops.aten.convolution_backward
    library = units(
        lambda x, weight: convolve.forward(x, weight, 1, backend),
        lambda g, weight, x: convolve.by_input(g, weight, x.shape, 1, backend),
        lambda x, g, weight: convolve.by_weight(x, g, 3, 1, backend),
    )
    torchs = units(
        lambda x, weight: torch.ops.aten.convolution(x, weight, None, *options),
        lambda g, weight, x: backward(g, x, weight, None, *options, [True, False, False])[0],
        lambda x, g, weight: backward(g, x, weight, None, *options, [False, True, False])[1],
    )
    flops = 6 * sum(2 * g.numel() * weight[0].numel() for x, weight, g in layers)
    paired(
        f"six units of 13 convolutions: GradResNet-18, width 64, {len(layers[0][0])} images, {precision}",
        ("this library", library),
        {"PyTorch": torchs},
        Work(flops, dtype=DTYPES[precision]),
        agreement(library, TOLERANCE[precision]),
        operation="six units",
        dtype=precision,
    )


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=full), "bf16"])
def test_network_of_torch(paired, settings, precision):
    """score_matching_step on a network of torch.nn.Conv2d: first derivatives only, against double backward."""
    torch.manual_seed(0)
    shape = settings.shape((32, 64, 32, 32))
    channels = [3] + [shape[1]] * 4
    layers = [(torch.nn.Conv2d(a, b, 3, padding=1), torch.nn.GELU()) for a, b in itertools.pairwise(channels)]
    network = torch.nn.Sequential(
        *sum(layers, ()), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(shape[1], 10)
    ).to(settings.device, **NHWC)
    y = torch.rand(shape[0], 3, *shape[2:], device=settings.device).contiguous(**NHWC)
    loss = lambda outputs, score: 1e4 * score.square().mean() + outputs.square().mean()

    def step(impl):
        network.zero_grad()
        with torch.autocast(settings.device, torch.bfloat16, enabled=precision == "bf16"):
            cdn_kernels.score_matching_step(network, y, loss, impl=impl)
        return [torch.cat([p.grad.flatten() for p in network.parameters()])]

    library = lambda: step("auto")
    paired(
        f"score_matching_step, a network of torch.nn.Conv2d: {tuple(y.shape)}, {precision}",
        ("this library", library),
        {"eager double backward": lambda: step("reference")},
        agree=agreement(library, {"float32": 1e-4, "bf16": 5e-2}[precision]),
        operation="torch.nn.Conv2d",
        precision=precision,
    )
