"""Prove and measure the GPU kernels on this machine, in one command.

    python -m benchmarks.gpu_report --out DIR                                  tests, ceilings, kernels, steps: minutes
    python -m benchmarks.gpu_report --out DIR --only train --data-dir DATA     train on CIFAR-10, with both baselines

Every stage is a command of its own that prints as it goes and leaves its log and its JSON in DIR. One that fails is
named in the table at the end, and the others run. Needs PyTorch with CUDA, triton, pytest and pytest-benchmark; the
checkout need not be installed.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from cdn_kernels import machine

from . import page

ROOT = Path(__file__).parents[1]
RECIPE = ["--data", "cifar10", "--precision", "bf16", "--batch-size", "512", "--fused", "--device", "cuda"]


class Stage(NamedTuple):
    """A command of the report.

    Attributes:
        command: a function of the arguments that returns its words, after "python".
        about: what it shows.
        folder: where it runs, below the checkout.
        default: whether it runs unless --only names others.
    """

    command: object
    about: str
    folder: str = "."
    default: bool = True


def _benchmark(name, *options):
    return lambda args: [
        "-m", "pytest", "-q", f"benchmarks/{name}.py", "--benchmark-only", "--device", "cuda", "--seconds",
        str(args.seconds), "--benchmark-json", str(args.out / f"{name}.json"), *options]


def _train(run, *options):
    return lambda args: ["-m", "cdn.train", *RECIPE, "--data-dir", str(args.data_dir), "--epochs", str(args.epochs),
                         "--out", str(args.out / run), *options]


RUNS = {"joint": [], "classification": ["--objective", "classification"],
        "denoiser": ["--model", "denoiser18", "--clean-share", "0"]}


def _build(args):
    """Build for the GPU at hand only."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else ()
    return ["csrc/cuda/build.py", *(["".join(map(str, capability))] if capability else [])]


STAGES = {
    "build": Stage(_build, "the CUDA library for this GPU"),
    "info": Stage(lambda args: ["-m", "cdn_kernels.info"], "what runs here"),
    "tests": Stage(lambda args: ["-m", "pytest", "-q", "-p", "no:cacheprovider", "triton_kernels.py",
                                 "triton_convolution.py", "test_cuda_kernels.py", "-k", "not emulated"],
                   "the kernels against the reference, all orders", "tests/kernels"),
    "passes": Stage(_benchmark("test_passes"), "bandwidth of every pass, as a share of a copy's"),
    "step": Stage(_benchmark("test_joint_step"), "the joint step and the score against all peers"),
    "operations": Stage(_benchmark("test_operations"), "every operation, by order"),
    "convolutions": Stage(_benchmark("test_convolutions", "--full"), "our own convolutions against PyTorch's"),
    "scaling": Stage(_benchmark("test_scaling"), "time and memory against the batch", default=False),
    **{f"train-{name}": Stage(_train(name, *options), f"CIFAR-10: {name}", default=False)
       for name, options in RUNS.items()},
    "train-compare": Stage(
        lambda args: ["-m", "cdn.experiments.compare", *[str(args.out / name) for name in RUNS], "--out",
                      str(args.out / "comparison")], "the three runs side by side", default=False),
}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="STAGE",
                        help=f"of {', '.join(STAGES)}; \"train\" means all that begin with it")
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10, for training")
    parser.add_argument("--epochs", type=int, default=40, help="of training (default: 40)")
    parser.add_argument("--seconds", type=float, default=1.0, help="what the rounds of a case may take (default: 1)")
    args = parser.parse_args(argv)
    stages = choose(args.only)
    if any(name.startswith("train") for name in stages) and args.data_dir is None:
        raise SystemExit("--data-dir: training needs the folder of CIFAR-10")
    if not torch.cuda.is_available():
        raise SystemExit("no GPU: torch.cuda.is_available() is false, so there is nothing to report")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [run(name, stages[name], args) for name in stages]
    report = dict(machine=machine.describe("cuda"), stages=rows)
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    recorded = sorted(map(str, args.out.glob("test_*.json")))
    if recorded:
        page.main([*recorded, "--out", str(args.out)])
    print()
    for row in rows:
        print(f"{row['stage']:<20} {row['seconds']:6.0f} s  {'ok' if row['exit'] == 0 else 'FAILED, see its log'}")


def choose(names):
    """Return the stages of some names or beginnings, or those that run by default.

    Raises:
        SystemExit: a name that begins none.
    """
    if not names:
        return {name: stage for name, stage in STAGES.items() if stage.default}
    unknown = [wanted for wanted in names if not any(name.startswith(wanted) for name in STAGES)]
    if unknown:
        raise SystemExit(f"--only: expected some of {', '.join(STAGES)}, got {unknown[0]!r}")
    return {name: stage for name, stage in STAGES.items() if any(name.startswith(wanted) for wanted in names)}


def run(name, stage, args):
    """Run a stage, printing and logging what it prints; return {"stage", "seconds", "exit"}."""
    print(f"\n== {name}: {stage.about}", flush=True)
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
                   "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # which the deterministic algorithms of the tests need
    with (args.out / f"{name}.log").open("w") as log, subprocess.Popen(
            [sys.executable, *stage.command(args)], cwd=ROOT / stage.folder, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
    return dict(stage=name, seconds=time.perf_counter() - start, exit=process.returncode)


if __name__ == "__main__":
    main()
