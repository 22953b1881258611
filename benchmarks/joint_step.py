"""Time the joint training step against what one would otherwise run, and against the convolutions it must do.

    python -m benchmarks.joint_step [--width 64] [--batch 64] [--precision bf16] [--threads N] [--json FILE]

All cases run in turn, each in a process of its own, on the same images and noise, after their losses have been found
equal. The fused ones reuse freed memory, as cdn.train --fused does; eager ones run as PyTorch comes. "six units" are the
convolutions of a joint step alone, by torch: forward, input gradient and weight gradient of every layer, twice. Peak
memory is what a step adds to its process.
"""
import argparse
import json
import multiprocessing
import os
import platform
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cdn
import cdn_kernels
from cdn_kernels.backends import cpu

from .paired import measure, ratio

LEVELS = cdn_kernels.NoiseLevels()
# Losses of different implementations: rounding, in the sum of some thousand values of half precision.
TOLERANCE = {"float32": 1e-5, "bf16": 5e-3}


class Step:
    """A training step without the optimizer: forward, score, and backward through both.

    Args:
        args: the options of the command.
        impl: what runs the library's operations.
        layout: memory format of weights and images.
        denoising: whether the denoising term is part of the loss.
    """

    def __init__(self, args, impl, layout=torch.channels_last, denoising=True):
        torch.manual_seed(0)
        build = {18: cdn.gradresnet18, 34: cdn.gradresnet34}[args.depth]
        yardstick = dict(norm="plain", head="linear") if args.yardstick else {}
        self.model = build(width=args.width, **yardstick).to(memory_format=layout)
        self.x = torch.rand(args.batch, 3, args.size, args.size).contiguous(memory_format=layout)
        self.labels = torch.randint(0, 10, (args.batch,))
        self.impl, self.bf16, self.weight = impl, args.precision == "bf16", float(denoising)

    def __call__(self):
        self.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss, _ = cdn.joint_step(self.model, self.x, self.labels, LEVELS, cdn_kernels.Noise(0),
                                     denoising_weight=self.weight, impl=self.impl)
        return float(loss)


class Score(Step):
    """The score alone, without a graph."""

    def __call__(self):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16), cdn_kernels.using(self.impl):
            return float(cdn.score(self.model, self.x).square().mean())


class SixUnits(TorchDispatchMode):
    """The convolutions of a joint step, with arguments of the right shapes and nothing between them."""

    def __init__(self, step):
        super().__init__()
        self.calls = []
        with self, torch.no_grad(), cdn_kernels.using("reference"), \
                torch.autocast("cpu", torch.bfloat16, enabled=step.bf16):
            step.model(step.x)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.calls.append((torch.randn_like(args[0]), torch.randn_like(args[1]), torch.randn_like(out), args[3:]))
        return out

    def __call__(self):
        for x, weight, g, options in self.calls:
            for _ in range(2):
                torch.ops.aten.convolution(x, weight, None, *options)
                torch.ops.aten.convolution_backward(g, x, weight, None, *options, [True, True, False])


CASES = {
    "eager": lambda args: Step(args, "reference"),
    "eager, contiguous": lambda args: Step(args, "reference", torch.contiguous_format),
    "fused": lambda args: Step(args, "cpu"),
    "eager, classifier only": lambda args: Step(args, "reference", denoising=False),
    "score, eager": lambda args: Score(args, "reference"),
    "score, fused": lambda args: Score(args, "cpu"),
    "six units": lambda args: SixUnits(Step(args, "reference")),
}
RATIOS = [("eager", "fused"), ("eager, contiguous", "fused"), ("fused", "eager, classifier only"),
          ("fused", "six units"), ("score, eager", "score, fused")]


class Worker:
    """A case in a process of its own, which waits until it is called; a context manager."""

    def __init__(self, name, args):
        self.name, self.peak_bytes = name, 0
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, args), daemon=True)

    def __enter__(self):
        self.process.start()
        return self

    def __exit__(self, *error):
        self.process.kill()

    def __call__(self):
        self.pipe.send(None)
        while not self.pipe.poll(1):
            if not self.process.is_alive():
                raise SystemExit(f"the process of the case {self.name!r} ended with {self.process.exitcode}")
        value, self.peak_bytes = self.pipe.recv()
        return value


def _serve(pipe, name, args):
    torch.set_num_threads(args.threads)
    if "fused" in name or args.keep_pages:
        cdn_kernels.keep_pages()
    step = CASES[name](args)
    before = _high_water()
    while True:
        pipe.recv()
        pipe.send((step(), _high_water() - before))


def _high_water():
    # Not getrusage(), whose maximum a process inherits from the one that started it.
    line, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint_step", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, choices=(18, 34), default=18)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--precision", choices=TOLERANCE, default="bf16")
    parser.add_argument("--yardstick", action="store_true", help="plain norm and linear head")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep-pages", action="store_true", help="let eager PyTorch reuse freed memory, too")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args(argv)
    with ExitStack() as stack:
        cases = {name: stack.enter_context(Worker(name, args)) for name in CASES}
        for slow, fast in (("eager", "fused"), ("score, eager", "score, fused")):
            a, b = cases[slow](), cases[fast]()
            if abs(a - b) > TOLERANCE[args.precision] * abs(a):
                raise SystemExit(f"no comparison: {slow} gives {a}, {fast} {b}")
        times = measure(cases, args.rounds)
        memory = {name: worker.peak_bytes for name, worker in cases.items()}
    result = dict(
        options={name: str(value) for name, value in vars(args).items()}, capability=cpu.CAPABILITY,
        processor=platform.processor() or platform.machine(), cores=os.cpu_count(), torch=torch.__version__,
        seconds=times, peak_bytes=memory, ratios={f"{a} / {b}": ratio(times, a, b) for a, b in RATIOS})
    print(f"GradResNet-{args.depth}, width {args.width}, {args.batch} images of {args.size}x{args.size}, "
          f"{args.precision}, {args.threads} threads, torch {torch.__version__}, {cpu.CAPABILITY}")
    for name, values in times.items():
        print(f"  {name:<26} {sorted(values)[len(values) // 2]:8.3f} s")
    for name, (median, low, high) in result["ratios"].items():
        print(f"  {name:<46} {median:6.2f}  ({low:.2f} to {high:.2f})")
    print(f"  peak memory, fused / eager: {memory['fused'] / 2**20:.0f} / {memory['eager'] / 2**20:.0f} MiB = "
          f"{memory['fused'] / max(memory['eager'], 1):.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
