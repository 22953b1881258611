"""The passes between convolutions, kernel by kernel, over buffers that exist beforehand."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.operations import EPS, GROUP_SIZE, KEY
from cdn_kernels import reference
from cdn_kernels.backends import interface

IMAGE_CHANNELS = 3
_DRAWN = 16


class Pass(NamedTuple):
    """A pass over fixed tensors.

    Attributes:
        run: do it.
        reads, writes: tensors of the size of the images.
        values: smaller results, which do not count as bytes.
        expected: return what writes and values should hold, by the reference in float64.
    """

    run: Callable
    reads: list
    writes: list
    values: list
    expected: Callable


def make_pass(name, kernels, shape, dtype, layout, device="cpu"):
    """Return one of NAMES over feature images of a shape, or over as many bytes of noisy images.

    Args:
        kernels: a module with the functions of cdn_kernels.backends.cpu.
    """
    build = next(build for build, names in NAMES.items() if name in names)
    if build is noise_passes:
        shape = (max(1, math.prod(shape) // (IMAGE_CHANNELS * shape[2] * shape[3])), IMAGE_CHANNELS, *shape[2:])
    with torch.device(device):
        return build(kernels, shape, dtype, layout)[name]


def images(number, shape, dtype, layout):
    """Return a number of random tensors [B, C, H, W]: some images, again and again, as drawing takes long."""
    drawn = [torch.randn(min(shape[0], _DRAWN), *shape[1:], dtype=dtype) for _ in range(number)]
    again = torch.arange(shape[0]) % _DRAWN
    return [t[again].contiguous(memory_format=layout) for t in drawn]


def gelu_passes(kernels, shape, dtype, layout):
    """Return the sweeps of GELU and of residual + GELU + normalization."""
    x, grad, other, out, more = images(5, shape, dtype, layout)
    channels, groups = shape[1], max(1, shape[1] // GROUP_SIZE)
    real = reference.compute_dtype(dtype)
    gain, shares = torch.rand(channels, dtype=real) + 0.5, torch.empty(shape[:2], dtype=real)
    statistics, scratch = (torch.empty(shape[0], 4 * groups + 1, dtype=real) for _ in range(2))
    common = (gain, groups, EPS, True, layout == torch.channels_last)
    kernels.gelu_norm(interface.FORWARD, x, *common, statistics=statistics, out=out)

    def gelu(sweep, *others, written):
        run = lambda: kernels.gelu(sweep, x, *((*others, None, None))[:2], *([*written, None])[:2])
        return Pass(run, [x, *others], written, [], lambda: derivatives(reference.gelu, x, sweep, *others))

    def norm(sweep, written, residual=None, source=None, **inputs):
        # A pass over v = x + residual would find other statistics than those kept for x.
        kept = scratch if sweep == interface.FORWARD else statistics
        run = lambda: kernels.gelu_norm(
            sweep,
            x,
            *common,
            statistics=kept,
            residual=residual,
            source=source,
            gain_grad=None if sweep == interface.FORWARD else shares,
            **written,
            **inputs,
        )

        def expected():
            v = x if residual is None else x + residual
            function = lambda v: reference.gelu_group_norm(v, gain.double(), groups, eps=EPS)
            results = derivatives(function, v, sweep, *inputs.values())
            if source is not None:
                results[0] = results[0] + source.double()
            return results if residual is None else [*results, v]

        return Pass(
            run,
            [t for t in (x, residual, source, *inputs.values()) if t is not None],
            [*written.values()],
            [],
            expected,
        )

    return {
        "gelu forward": gelu(interface.FORWARD, written=[out]),
        "gelu backward": gelu(interface.BACKWARD, grad, written=[out]),
        "gelu backward, source": Pass(
            lambda: kernels.gelu(interface.BACKWARD, x, grad, other, out, None),
            [x, grad, other],
            [out],
            [],
            lambda: [derivatives(reference.gelu, x, interface.BACKWARD, grad)[0] + other.double()],
        ),
        "gelu tangent": gelu(interface.TANGENT, grad, other, written=[out, more]),
        "norm forward": norm(interface.FORWARD, dict(out=out)),
        "norm forward, residual": norm(interface.FORWARD, dict(out=out, sum=more), residual=grad),
        "norm backward": norm(interface.BACKWARD, dict(out=out), grad=grad),
        "norm backward, source": norm(interface.BACKWARD, dict(out=out), source=other, grad=grad),
        "norm tangent": norm(interface.TANGENT, dict(out=out, tangent_out=more), grad=grad, tangent=other),
    }


def derivatives(function, x, sweep, grad=None, tangent=None):
    """Return [f(x)], [its gradient along grad], or the gradients of <that, tangent> by [x, grad], in float64."""
    x = x.double().requires_grad_()
    value = function(x)
    if sweep == interface.FORWARD:
        return [value.detach()]
    grad = grad.double().requires_grad_()
    (first,) = torch.autograd.grad(value, x, grad, create_graph=True)
    if sweep == interface.BACKWARD:
        return [first.detach()]
    return list(torch.autograd.grad(first, (x, grad), tangent.double()))


def pool_passes(kernels, shape, dtype, layout):
    """Return the reductions of the head and their adjoints."""
    a, b, out = images(3, shape, dtype, layout)
    real = reference.compute_dtype(dtype)
    pixels = shape[2] * shape[3]
    given, found = (torch.rand(shape[0], dtype=real) for _ in range(2))
    given_means, found_means = (torch.rand(shape[:2], dtype=real) for _ in range(2))

    def pool(kind, values, **tensors):
        return lambda: kernels.pool(kind, shape, layout == torch.channels_last, values, **tensors)

    return {
        "pool dot": Pass(
            pool(interface.DOT, found, a=a, b=b),
            [a, b],
            [],
            [found],
            lambda: [(a.double() * b.double()).sum((1, 2, 3)) / pixels],
        ),
        "pool scale": Pass(
            pool(interface.SCALE, given, a=a, out=out),
            [a],
            [out],
            [],
            lambda: [a.double() * given.double().view(-1, 1, 1, 1) / pixels],
        ),
        "pool mean": Pass(
            pool(interface.MEAN, found_means, a=a), [a], [], [found_means], lambda: [a.double().mean((2, 3))]
        ),
        "pool spread": Pass(
            pool(interface.SPREAD, given_means, out=out),
            [],
            [out],
            [],
            lambda: [(given_means.double() / pixels)[..., None, None].expand(shape)],
        ),
    }


def noise_passes(kernels, shape, dtype, layout):
    """Return the passes that draw noise."""
    x, y = images(2, shape, dtype, layout)
    real = reference.compute_dtype(dtype)
    sigma, errors, factors = (torch.rand(shape[0], dtype=real) + 0.1 for _ in range(3))
    channels = shape[1] if layout == torch.channels_last else 0
    key = KEY.seed, KEY.position(x.device)
    eps = lambda: reference.standard_normal(shape, KEY, torch.float64).to(x.device)
    residual = lambda: reference.denoising_residual(x.double(), sigma.double(), eps())
    per_image = lambda values: values.double().view(-1, 1, 1, 1)
    return {
        "add noise": Pass(
            lambda: kernels.add_noise(x, sigma, y, *key, channels),
            [x],
            [y],
            [],
            lambda: [x.double() + per_image(sigma) * eps()],
        ),
        "denoising error": Pass(
            lambda: kernels.denoising(x, sigma, *key, channels, errors=errors),
            [x],
            [],
            [errors],
            lambda: [residual().square().mean((1, 2, 3))],
        ),
        "denoising gradient": Pass(
            lambda: kernels.denoising(x, sigma, *key, channels, factors=factors, gradient=y),
            [x],
            [y],
            [],
            lambda: [2 * per_image(factors * sigma) * residual() / math.prod(shape[1:])],
        ),
    }


NAMES = {
    gelu_passes: [
        "gelu forward",
        "gelu backward",
        "gelu backward, source",
        "gelu tangent",
        "norm forward",
        "norm forward, residual",
        "norm backward",
        "norm backward, source",
        "norm tangent",
    ],
    pool_passes: ["pool dot", "pool scale", "pool mean", "pool spread"],
    noise_passes: ["add noise", "denoising error", "denoising gradient"],
}


def difference(case):
    """Run a pass over poisoned buffers; return None, or in words how it differs from the reference."""
    for result in case.writes + case.values:
        result.fill_(math.nan)
    case.run()
    for result, expected in zip(case.writes + case.values, case.expected(), strict=True):
        # Rounded once, after some twenty roundings to float32.
        bound = (torch.finfo(result.dtype).eps + 20 * torch.finfo(torch.float32).eps) * expected.abs().max()
        error = (result.double() - expected).abs().max()
        if not error <= bound:
            return f"off by {error:.3g}, {bound:.3g} allowed"
    return None
