"""Every operation, by order of differentiation, against eager and compiled PyTorch."""

import pytest
import torch
import torch.nn.functional as F

import cdn_kernels
from benchmarks.harness.agreement import agreement
from benchmarks.harness.ceilings import Work
from benchmarks.harness.workers import refusing
from benchmarks.operations import EPS, GROUP_SIZE, KEY, LAYOUTS, OPERATIONS, ORDERS, UNITS, Sweep
from benchmarks.peers import group_norms
from benchmarks.steps import DTYPES
from cdn_kernels import reference

full = pytest.mark.full
# [B, C, H, W]: the first stage on CIFAR-10, on 64x64 images, and the stages of an ImageNet network.
SHAPES = {
    "CIFAR": (64, 64, 32, 32),
    "64x64": (16, 64, 64, 64),
    "ImageNet 1": (8, 64, 56, 56),
    "ImageNet 2": (8, 128, 28, 28),
    "ImageNet 3": (8, 256, 14, 14),
    "ImageNet 4": (8, 512, 7, 7),
}
# Of the norm: a few roundings of storage, in sums of random signs.
TOLERANCE = {"float32": 1e-4, "bf16": 3e-2}

orders = pytest.mark.parametrize(
    "order", [pytest.param(o, marks=() if o == "double backward" else pytest.mark.no_smoke) for o in ORDERS]
)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
shapes = pytest.mark.parametrize("shape", [pytest.param(s, marks=() if s == "CIFAR" else full) for s in SHAPES])
layouts = pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=() if name == "channels last" else full) for name in LAYOUTS]
)
names = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=full if name == "residual + GELU + norm" else ()) for name in OPERATIONS]
)


@layouts
@shapes
@dtypes
@orders
@names
def test_operation(paired, settings, name, order, dtype, shape, layout):
    operation, shape = OPERATIONS[name], settings.shape(SHAPES[shape])

    def sweep(function, layout):
        torch.manual_seed(0)
        inputs = [t.to(settings.device) for t in operation.inputs(shape, DTYPES[dtype])]
        return Sweep(function, inputs, order, LAYOUTS[layout])

    library = sweep(lambda *inputs: operation.library(*inputs, impl=settings.library), layout)
    peers = {f"eager, {other}": sweep(operation.plain, other) for other in LAYOUTS}
    # Compiled code refuses double backward; compiling the forward without a graph takes as long once more.
    if order == "backward" or (order == "forward" and settings.full):
        fast = torch.compile(operation.plain, fullgraph=True, dynamic=False)
        peers["compiled"] = refusing(sweep(fast, layout))
    if name == "residual + GELU + norm" and settings.device == "cuda":
        peers |= {
            name: refusing(sweep(_normalized_by(norm), layout))
            for name, norm in group_norms.installed(shape[1] // GROUP_SIZE).items()
        }
    work = Work(UNITS[order] * operation.flops(*library.inputs), library.bytes(), DTYPES[dtype])
    paired(
        f"{name}, {order}: {shape}, {dtype}, {layout}",
        ("this library", library),
        peers,
        work,
        agreement(library, TOLERANCE[dtype]),
        operation=name,
        order=order,
        dtype=dtype,
        layout=layout,
        shape=shape,
    )


@layouts
@dtypes
def test_noise(paired, settings, dtype, layout):
    """Adding noise of a level per image, by the library's generator and by torch.randn."""
    x, sigma = _images(settings, dtype, layout)
    impl = settings.library
    paired(
        f"x + sigma eps: {tuple(x.shape)}, {dtype}, {layout}",
        ("this library", lambda: cdn_kernels.sample_noise(x, sigma, KEY, impl=impl)[0]),
        {"(other noise: torch.randn_like)": lambda: x + _per_image(sigma, x) * torch.randn_like(x)},
        Work(bytes=2 * x.nbytes),
        operation="noise",
        order="forward",
        dtype=dtype,
        layout=layout,
        shape=tuple(x.shape),
    )


@layouts
@dtypes
def test_residual(paired, settings, dtype, layout):
    """The denoising loss and its gradient by the score, with eps drawn again instead of stored."""
    values, sigma = _images(settings, dtype, layout)
    score = (values - 0.5).requires_grad_()
    eps = reference.standard_normal(score.shape, KEY, torch.float32).to(score)
    plain = lambda: (_per_image(sigma, score) * score + eps).square().mean()
    library = lambda: cdn_kernels.denoising_loss(score, sigma, KEY, impl=settings.library)

    def both(loss):
        value = loss()
        return [value, *torch.autograd.grad(value, score)]

    paired(
        f"denoising loss and gradient: {tuple(score.shape)}, {dtype}, {layout}",
        ("this library", lambda: both(library)),
        {"eager, eps stored": lambda: both(plain)},
        Work(bytes=3 * score.nbytes),
        agreement(lambda: both(library), TOLERANCE[dtype]),
        operation="residual",
        order="backward",
        dtype=dtype,
        layout=layout,
        shape=tuple(score.shape),
    )


def _normalized_by(norm):
    """Return residual + GELU + norm with the norm of another library."""
    return lambda x, gain, residual: norm(F.gelu(x + residual), gain, EPS)


def _images(settings, dtype, layout):
    x = torch.rand(settings.shape((2048, 3, 32, 32)), device=settings.device).to(DTYPES[dtype])
    return x.contiguous(memory_format=LAYOUTS[layout]), torch.rand(len(x), device=settings.device) + 0.1


def _per_image(sigma, like):
    return sigma.to(like.dtype).view(-1, 1, 1, 1)
