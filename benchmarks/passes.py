"""Time every pass between convolutions against a copy of tensors larger than the cache.

    python -m benchmarks.passes [--threads N] [--dtype bf16] [--layout channels_last] [--megabytes 128] [--json FILE]

A pass is judged by the bytes it cannot avoid, each tensor that it reads or writes counted once, per second, as a
fraction of what a copy reaches in the same round. Buffers exist beforehand: allocating them is not part of a pass.
Before anything is timed, every pass is compared with the reference on a few images; none is timed if one differs.
"""
import argparse
import json
import math
import os
import platform
from pathlib import Path
from typing import Callable, NamedTuple

import torch

import cdn_kernels
from cdn_kernels import reference
from cdn_kernels.backends import cpu, interface

from .paired import measure, ratio

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
KEY = cdn_kernels.Noise(0)
EPS = 1e-3
IMAGE_CHANNELS = 3


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


def passes(shape, dtype, layout):
    """Return the passes over feature images of a shape and over noisy images of as many bytes, by name."""
    return gelu_passes(shape, dtype, layout) | pool_passes(shape, dtype, layout) | noise_passes(
        (math.prod(shape) // (IMAGE_CHANNELS * shape[2] * shape[3]), IMAGE_CHANNELS, *shape[2:]), dtype, layout)


def images(number, shape, dtype, layout):
    """Return a number of random tensors [B, C, H, W]."""
    return [torch.randn(shape, dtype=dtype).contiguous(memory_format=layout) for _ in range(number)]


def gelu_passes(shape, dtype, layout):
    """Return the sweeps of GELU and of residual + GELU + normalization."""
    x, grad, other, out, more = images(5, shape, dtype, layout)
    channels, groups = shape[1], max(1, shape[1] // 8)
    real = reference.compute_dtype(dtype)
    gain, shares = torch.rand(channels, dtype=real) + 0.5, torch.empty(shape[:2], dtype=real)
    statistics, scratch = (torch.empty(shape[0], 4 * groups + 1, dtype=real) for _ in range(2))
    common = (gain, groups, EPS, True, layout == torch.channels_last)
    cpu.gelu_norm(interface.FORWARD, x, *common, statistics=statistics, out=out)

    def gelu(sweep, *others, written):
        run = lambda: cpu.gelu(sweep, x, *(others + (None, None))[:2], *(written + [None])[:2])
        return Pass(run, [x, *others], written, [], lambda: derivatives(reference.gelu, x, sweep, *others))

    def norm(sweep, written, residual=None, source=None, **inputs):
        # A pass over v = x + residual would find other statistics than those kept for x.
        kept = scratch if sweep == interface.FORWARD else statistics
        run = lambda: cpu.gelu_norm(sweep, x, *common, statistics=kept, residual=residual, source=source,
                                    gain_grad=None if sweep == interface.FORWARD else shares, **written, **inputs)

        def expected():
            v = x if residual is None else x + residual
            function = lambda v: reference.gelu_group_norm(v, gain.double(), groups, eps=EPS)
            results = derivatives(function, v, sweep, *inputs.values())
            if source is not None:
                results[0] = results[0] + source.double()
            return results if residual is None else [*results, v]

        return Pass(run, [t for t in (x, residual, source, *inputs.values()) if t is not None], [*written.values()],
                    [], expected)

    return {
        "gelu forward": gelu(interface.FORWARD, written=[out]),
        "gelu backward": gelu(interface.BACKWARD, grad, written=[out]),
        "gelu backward, source": Pass(lambda: cpu.gelu(interface.BACKWARD, x, grad, other, out, None), [x, grad, other],
                                      [out], [], lambda: [derivatives(reference.gelu, x, interface.BACKWARD, grad)[0]
                                                          + other.double()]),
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
    first, = torch.autograd.grad(value, x, grad, create_graph=True)
    if sweep == interface.BACKWARD:
        return [first.detach()]
    return list(torch.autograd.grad(first, (x, grad), tangent.double()))


def pool_passes(shape, dtype, layout):
    """Return the reductions of the head and their adjoints."""
    a, b, out = images(3, shape, dtype, layout)
    real = reference.compute_dtype(dtype)
    pixels = shape[2] * shape[3]
    given, found = (torch.rand(shape[0], dtype=real) for _ in range(2))
    given_means, found_means = (torch.rand(shape[:2], dtype=real) for _ in range(2))

    def pool(kind, values, **tensors):
        return lambda: cpu.pool(kind, shape, layout == torch.channels_last, values, **tensors)

    return {
        "pool dot": Pass(pool(interface.DOT, found, a=a, b=b), [a, b], [], [found],
                         lambda: [(a.double() * b.double()).sum((1, 2, 3)) / pixels]),
        "pool scale": Pass(pool(interface.SCALE, given, a=a, out=out), [a], [out], [],
                           lambda: [a.double() * given.double().view(-1, 1, 1, 1) / pixels]),
        "pool mean": Pass(pool(interface.MEAN, found_means, a=a), [a], [], [found_means],
                          lambda: [a.double().mean((2, 3))]),
        "pool spread": Pass(pool(interface.SPREAD, given_means, out=out), [], [out], [],
                            lambda: [(given_means.double() / pixels)[..., None, None].expand(shape)]),
    }


def noise_passes(shape, dtype, layout):
    """Return the passes that draw noise."""
    x, y = images(2, shape, dtype, layout)
    real = reference.compute_dtype(dtype)
    sigma, errors, factors = (torch.rand(shape[0], dtype=real) + 0.1 for _ in range(3))
    channels = shape[1] if layout == torch.channels_last else 0
    eps = lambda: reference.standard_normal(shape, KEY, torch.float64)
    residual = lambda: reference.denoising_residual(x.double(), sigma.double(), eps())
    per_image = lambda values: values.double().view(-1, 1, 1, 1)
    return {
        "add noise": Pass(lambda: cpu.add_noise(x, sigma, y, 0, 0, channels), [x], [y], [],
                          lambda: [x.double() + per_image(sigma) * eps()]),
        "denoising error": Pass(lambda: cpu.denoising(x, sigma, 0, 0, channels, errors=errors), [x], [], [errors],
                                lambda: [residual().square().mean((1, 2, 3))]),
        "denoising gradient": Pass(
            lambda: cpu.denoising(x, sigma, 0, 0, channels, factors=factors, gradient=y), [x], [y], [],
            lambda: [2 * per_image(factors * sigma) * residual() / math.prod(shape[1:])]),
    }


def check(shape, dtype, layout):
    """Raise SystemExit unless every pass over tensors of a shape gives what the reference gives."""
    for name, case in passes(shape, dtype, layout).items():
        for result in case.writes + case.values:
            result.fill_(math.nan)
        case.run()
        for result, expected in zip(case.writes + case.values, case.expected(), strict=True):
            # Rounded once, after some twenty roundings to float32.
            bound = (torch.finfo(result.dtype).eps + 20 * torch.finfo(torch.float32).eps) * expected.abs().max()
            error = (result.double() - expected).abs().max()
            if not error <= bound:
                raise SystemExit(f"no measurement: {name} is off by {error:.3g}, {bound:.3g} allowed")


def shape_of(args, dtype):
    """Return [B, C, H, W] with tensors of at least as many bytes as asked for."""
    image = (args.channels, args.size, args.size)
    return (math.ceil(args.megabytes * 2**20 / (math.prod(image) * dtype.itemsize)), *image)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.passes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--layout", choices=LAYOUTS, nargs="+", default=list(LAYOUTS))
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--megabytes", type=float, default=128, help="of one tensor, larger than the cache")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{args.channels} channels of {args.size}x{args.size}, {args.megabytes:g} MiB a tensor, {args.threads} "
          f"threads, torch {torch.__version__}, {cpu.CAPABILITY}")
    rows = [row for dtype in args.dtype for layout in args.layout for row in report(args, dtype, layout)]
    if args.json:
        result = dict(options={name: str(value) for name, value in vars(args).items()}, capability=cpu.CAPABILITY,
                      processor=platform.processor() or platform.machine(), cores=os.cpu_count(),
                      torch=torch.__version__, passes=rows)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def report(args, dtype_name, layout_name):
    """Measure all passes for a dtype and a layout; print and return a row for each."""
    dtype, layout = DTYPES[dtype_name], LAYOUTS[layout_name]
    check((3, args.channels, args.size, args.size), dtype, layout)
    shape = shape_of(args, dtype)
    cases = passes(shape, dtype, layout)
    source, target = images(2, shape, dtype, layout)
    times = measure({"copy": lambda: target.copy_(source)} | {name: case.run for name, case in cases.items()},
                    args.rounds)
    copied, rows = 2 * source.nbytes, []
    print(f"{dtype_name}, {layout_name}: copy {copied / middle(times['copy']) / 1e9:.1f} GB/s\n"
          f"{'':<26}{'ns/element':>12}{'GB/s':>8}  of the copy")
    for name, case in cases.items():
        bytes_ = sum(t.nbytes for t in case.reads + case.writes)
        fraction = [bytes_ / copied * value for value in ratio(times, "copy", name)]
        elements = (case.reads + case.writes)[0].numel()
        row = dict(dtype=dtype_name, layout=layout_name, name=name, ns_per_element=1e9 * middle(times[name]) / elements,
                   gigabytes_per_second=bytes_ / middle(times[name]) / 1e9, fraction_of_copy=fraction)
        rows.append(row)
        print(f"  {name:<24}{row['ns_per_element']:12.3f}{row['gigabytes_per_second']:8.1f}  "
              f"{fraction[0]:6.2f}  ({fraction[1]:.2f} to {fraction[2]:.2f})", flush=True)
    return rows


def middle(times):
    """Return the median."""
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main()
