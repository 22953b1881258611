"""Time a step of a network of torch.nn.Conv2d: score_matching_step against torch's double backward.

    python -m benchmarks.torch_convolutions [--channels 64] [--batch 32] [--groups 1] [--precision bf16] [--threads N]

Both run in turn, in one process, after their gradients have been found equal.
"""
import argparse
import warnings

import torch
from torch import nn

import cdn_kernels

from .paired import measure, ratio

# Of the gradients' norms: rounding, which both carry.
TOLERANCE = {"float32": 1e-4, "bf16": 5e-2}


class Step:
    """A step on a gradient penalty; impl="reference" leaves the convolutions to torch."""

    def __init__(self, args, impl):
        torch.manual_seed(0)
        channels = [3] + [args.channels] * 4
        layers = [(nn.Conv2d(a, b, 3, padding=1, groups=args.groups if a == b else 1), nn.GELU())
                  for a, b in zip(channels, channels[1:])]
        self.network = nn.Sequential(*sum(layers, ()), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                     nn.Linear(args.channels, 10))
        layout = torch.contiguous_format if args.contiguous else torch.channels_last
        self.network.to(memory_format=layout)
        self.y = torch.rand(args.batch, 3, args.size, args.size).contiguous(memory_format=layout)
        self.impl, self.bf16 = impl, args.precision == "bf16"

    def __call__(self):
        self.network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            cdn_kernels.score_matching_step(
                self.network, self.y, lambda outputs, score: 1e4 * score.square().mean() + outputs.square().mean(),
                impl=self.impl)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_convolutions", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--precision", choices=TOLERANCE, default="bf16")
    parser.add_argument("--contiguous", action="store_true", help="instead of channels last")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", "score_matching_step runs")
    cases = {"double backward": Step(args, "reference"), "first derivatives": Step(args, "auto")}
    for step in cases.values():
        step()
    for a, b in zip(*(step.network.parameters() for step in cases.values())):
        if (a.grad - b.grad).norm() > TOLERANCE[args.precision] * a.grad.norm():
            raise SystemExit(f"no comparison: gradients of shape {list(a.shape)} differ")
    times = measure(cases, args.rounds)
    print(f"{args.channels} channels, groups {args.groups}, {args.batch} images of {args.size}x{args.size}, "
          f"{'contiguous' if args.contiguous else 'channels last'}, {args.precision}, {args.threads} threads, "
          f"torch {torch.__version__}")
    for name, values in times.items():
        print(f"  {name:<20} {sorted(values)[len(values) // 2]:8.3f} s")
    median, low, high = ratio(times, "double backward", "first derivatives")
    print(f"  {'double backward / first derivatives':<40} {median:.2f}  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
