"""Time our own bfloat16 convolutions against torch's, map by map, on the shapes of GradResNet-18.

    python -m benchmarks.convolution [--width 64] [--batch 64] [--size 32] [--threads N] [--json FILE]

Both run in turn, in one process, after their results have been found equal. The last line weighs every layer by how
often it occurs: the convolutions of one forward, one gradient by the input and one by the filters.
"""
import argparse
import json
import os
import platform
from pathlib import Path

import torch

from cdn_kernels.backends import cpu
from cdn_kernels.ops import convolve

from .paired import measure, ratio

MAPS = ("forward", "by input", "by filters")


def layers(width, size):
    """Return [(inputs, outputs, side of the image, side of the filters, stride, how often)] without the stem."""
    result = [(width, width, size, 3, 1, 4)]
    for stage in range(3):
        inputs, side = width << stage, -(-size >> stage)
        result += [(inputs, 2 * inputs, side, 3, 2, 1), (inputs, 2 * inputs, side, 1, 2, 1),
                   (2 * inputs, 2 * inputs, -(-side // 2), 3, 1, 3)]
    return result


def cases(batch, inputs, outputs, side, size, stride):
    """Return {(map, whose): function} for a layer."""
    nhwc = dict(memory_format=torch.channels_last)
    x = torch.randn(batch, inputs, side, side).bfloat16().contiguous(**nhwc)
    weight = (torch.randn(outputs, inputs, size, size) / size / inputs**0.5).bfloat16().contiguous(**nhwc)
    g = torch.randn_like(convolve.empty_forward(x, weight, stride, "cpu"))
    shapes = x.shape, weight.shape
    options = [stride] * 2, [size // 2] * 2, [1, 1], False, [0, 0], 1

    def own(kind, first, second, like):
        out = torch.empty_like(like)
        cpu.conv2d(kind, first, second, out, shapes, stride)
        return out

    def backward(*mask):
        results = torch.ops.aten.convolution_backward(g, x, weight, None, *options, [*mask, False])
        return next(r for r in results if r is not None)

    return {("forward", "own"): lambda: own(cpu.CONV_FORWARD, x, weight, g),
            ("forward", "torch"): lambda: torch.ops.aten.convolution(x, weight, None, *options),
            ("by input", "own"): lambda: own(cpu.CONV_INPUT, g, weight, x),
            ("by input", "torch"): lambda: backward(True, False),
            ("by filters", "own"): lambda: own(cpu.CONV_WEIGHT, x, g, weight),
            ("by filters", "torch"): lambda: backward(False, True)}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolution", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args(argv)
    if cpu.ENGINE is None:
        raise SystemExit(f"no comparison: {cpu.MISSING or 'this processor has neither AVX-512 BF16 nor AMX'}")
    torch.set_num_threads(args.threads)
    print(f"{cpu.ENGINE}, {args.threads} threads, torch {torch.__version__}, batch {args.batch}: GFLOP/s of our own, "
          "and how many times as fast as torch (quartiles)")
    rows, total = [], {"own": 0.0, "torch": 0.0}
    for *layer, count in layers(args.width, args.size):
        inputs, outputs, side, size, stride = layer
        functions = cases(args.batch, *layer)
        for name in MAPS:
            a, b = functions[name, "own"]().double(), functions[name, "torch"]().double()
            if (a - b).norm() > 0.01 * b.norm():
                raise SystemExit(f"no comparison: results differ, {name} of {layer}")
        times = measure(functions, args.rounds)
        operations = 2 * args.batch * outputs * (-(-side // stride)) ** 2 * inputs * size**2
        cells = []
        for name in MAPS:
            median = {whose: sorted(times[name, whose])[args.rounds // 2] for whose in total}
            for whose in total:
                total[whose] += count * median[whose]
            gain = ratio(times, (name, "torch"), (name, "own"))
            rows.append(dict(layer=layer, map=name, flops=operations / median["own"], ratio=gain))
            cells.append(f"{name} {operations / median['own'] / 1e9:5.0f} {gain[0]:5.2f} ({gain[1]:.2f} to {gain[2]:.2f})")
        print(f"  {inputs:4} -> {outputs:4}, {side:3}, {size}x{size} / {stride}   " + "   ".join(cells), flush=True)
    print(f"  all of them: {total['torch'] / total['own']:.2f} times as fast as torch")
    if args.json:
        args.json.write_text(json.dumps(dict(
            options={name: str(value) for name, value in vars(args).items()}, engine=cpu.ENGINE, rows=rows, total=total,
            processor=platform.processor() or platform.machine(), cores=os.cpu_count(), torch=torch.__version__),
            indent=2) + "\n")


if __name__ == "__main__":
    main()
