"""Prove and measure the GPU kernels on this machine, in one command.

    python -m benchmarks.gpu_report --out DIR
        tests, ceilings, kernels, steps, the table for impl="auto", compute-sanitizer: minutes
    python -m benchmarks.gpu_report --out DIR --only train --data-dir DATA
        train on CIFAR-10, with both baselines

Every stage is a command of its own that prints as it goes and leaves its log and its JSON in DIR. One that fails is
named in the table at the end, and the others run. Those that time nothing run side by side: most of that is compiling,
also of what is timed later, while the GPU is idle. Needs PyTorch with CUDA, triton, pytest and pytest-benchmark; the
checkout need not be installed. DATA holds CIFAR-10 in any layout that cdn.data reads, such as strips of WebP.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import page
from benchmarks.harness.checkout import ROOT, environment
from cdn.cli.process import run_logged
from cdn_kernels import machine

RECIPE = ["--data", "cifar10", "--precision", "bf16", "--batch-size", "512", "--fused"]
# What an evaluation of a training run says, and how it is printed.
FIGURES = {
    "seconds": "{:.0f}",
    "accuracy": "{:.2%}",
    "accuracy_noisy": "{:.2%}",
    "psnr_15": "{:.2f}",
    "psnr_25": "{:.2f}",
    "psnr_50": "{:.2f}",
}


class Stage(NamedTuple):
    """A command of the report.

    Attributes:
        command: a function of the arguments that returns its words, after "python".
        about: what it shows.
        folder: where it runs, below the checkout.
        default: whether it runs unless --only names others.
        beside: a word that neighbours share which run at the same time, as none of them times anything.
    """

    command: object
    about: str
    folder: str = "."
    default: bool = True
    beside: str = ""


def _benchmark(name, *options):
    return lambda args: [
        "-m",
        "pytest",
        "-q",
        f"benchmarks/{name}.py",
        "--benchmark-only",
        "--device",
        args.device,
        "--seconds",
        str(args.seconds),
        "--benchmark-json",
        str(args.out / f"{name}.json"),
        *options,
    ]


def _shared(share, log, *tests):
    """Run tests in several processes, by a share of the cores."""
    return lambda args: [
        "-m",
        "benchmarks.side_by_side",
        "--parts",
        str(max(1, round(share * os.cpu_count()))),
        "--log",
        str(args.out / log),
        "--",
        "-q",
        "-p",
        "no:cacheprovider",
        *tests,
    ]


def _train(run, *options):
    return lambda args: [
        "-m",
        "cdn.train",
        *RECIPE,
        "--device",
        args.device,
        "--data-dir",
        str(args.data_dir),
        "--epochs",
        str(args.epochs),
        "--out",
        str(args.out / run),
        *options,
        *shlex.split(args.options),
    ]


RUNS = {
    "joint": [],
    "classification": ["--objective", "classification"],
    "denoiser": ["--model", "denoiser18", "--clean-share", "0"],
}


def _build(args):
    """Build for the GPU at hand only."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else ()
    return ["csrc/cuda/build.py", *(["".join(map(str, capability))] if capability else [])]


def _choices(args):
    """Choose by what the stages before have recorded."""
    recorded = [args.out / f"test_{name}.json" for name in ("passes", "convolutions")]
    return [
        "-m",
        "benchmarks.choices",
        *[str(path) for path in recorded if path.exists()],
        "--out",
        str(args.out / "measured.json"),
    ]


STAGES = {
    "build": Stage(_build, "the CUDA library for this GPU", beside="compilers"),
    "tests-triton": Stage(
        _shared(0.5, "tests-triton", "test_triton_kernels.py", "test_triton_convolution_kernels.py", "-m", "gpu"),
        "the Triton kernels against the reference, all orders",
        "tests/kernels",
        beside="compilers",
    ),
    "compile": Stage(
        _shared(
            0.25,
            "compile",
            "benchmarks/test_passes.py",
            "benchmarks/test_convolutions.py",
            "--full",
            "-k",
            "not contiguous",
            "--benchmark-disable",
        ),
        "the kernels that are timed below, for Triton's cache",
        beside="compilers",
    ),
    "info": Stage(lambda args: ["-m", "cdn_kernels.info"], "what runs here"),
    "tests-cuda": Stage(
        _shared(
            0.25, "tests-cuda", "test_cuda_kernels.py", "test_cuda_passes.py", "test_cuda_convolution.py", "-m", "gpu"
        ),
        "the CUDA kernels against the reference, all orders",
        "tests/kernels",
        beside="tests",
    ),
    "graphs": Stage(
        _shared(0.25, "graphs", "tests/training/test_on_gpu.py"),
        "training steps that never wait, as CUDA graphs",
        beside="tests",
    ),
    "sanitize": Stage(
        lambda args: ["-m", "benchmarks.sanitize", "--out", str(args.out)],
        "compute-sanitizer on a few of the CUDA tests",
        beside="tests",
    ),
    "passes": Stage(_benchmark("test_passes"), "bandwidth of every pass, as a share of a copy's"),
    "convolutions": Stage(_benchmark("test_convolutions", "--full"), "our own convolutions against PyTorch's"),
    "choices": Stage(
        _choices, 'the table for impl="auto" on this GPU, to be copied to cdn_kernels/backends/measured.json'
    ),
    "step": Stage(_benchmark("test_joint_step", "-k", "bf16"), "the joint step and the score against all peers"),
    "operations": Stage(_benchmark("test_operations"), "every operation, by order", default=False),
    "scaling": Stage(_benchmark("test_scaling"), "time and memory against the batch", default=False),
    **{
        f"train-{name}": Stage(_train(name, *options), f"CIFAR-10: {name}", default=False)
        for name, options in RUNS.items()
    },
    "train-compare": Stage(
        lambda args: [
            "-m",
            "cdn.experiments.compare",
            *[str(args.out / name) for name in RUNS],
            "--out",
            str(args.out / "comparison"),
        ],
        "the three runs side by side",
        default=False,
    ),
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--only", nargs="+", metavar="STAGE", help=f'of {", ".join(STAGES)}; "train" means all that begin with it'
    )
    parser.add_argument("--data-dir", type=Path, metavar="DATA", help="CIFAR-10, for training")
    parser.add_argument("--epochs", type=int, default=40, help="of training (default: 40)")
    parser.add_argument("--options", default="", help='for cdn.train, of all runs: --options="--learning-rate 0.004"')
    parser.add_argument("--seconds", type=float, default=1.0, help="what the rounds of a case may take (default: 1)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the report itself")
    args = parser.parse_args(argv)
    stages = choose(args.only)
    if any(name.startswith("train") for name in stages) and args.data_dir is None:
        raise SystemExit("--data-dir: training needs the folder of CIFAR-10")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: torch.cuda.is_available() is false, so there is nothing to report")
    args.data_dir = args.data_dir and args.data_dir.resolve()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    about, rows, trained = machine.describe(args.device), [], {}
    for row in run_all(stages, args):
        rows.append(row)
        trained = {name: found for name in RUNS if (found := training(args.out / name))}
        # Anew after every stage: what was found is kept if time runs out.
        report = dict(machine=about, stages=rows, training=trained)
        (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    recorded = sorted(map(str, args.out.glob("test_*.json")))
    if recorded:
        page.main([*recorded, "--out", str(args.out)])
    if trained:
        print("\n" + training_table(trained))
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


def run_all(stages, args):
    """Run stages, and yield what :func:`run` returns as they end; neighbours of one word run side by side."""
    for _, group in groupby(stages.items(), lambda named: named[1].beside or named[0]):
        named = list(group)
        with ThreadPoolExecutor(len(named)) as pool:
            prefix = "[{}] " if len(named) > 1 else ""
            running = [pool.submit(run, name, stage, args, prefix.format(name)) for name, stage in named]
            for done in as_completed(running):
                yield done.result()


def run(name, stage, args, prefix=""):
    """Run a stage, printing and logging what it prints; return {"stage", "seconds", "exit"}."""
    print(f"\n== {name}: {stage.about}", flush=True)
    start = time.perf_counter()
    status = run_logged(
        [sys.executable, *stage.command(args)],
        args.out / f"{name}.log",
        prefix,
        cwd=ROOT / stage.folder,
        env=environment(PYTHONUNBUFFERED="1", CUBLAS_WORKSPACE_CONFIG=":4096:8"),
    )  # for deterministic algorithms
    return dict(stage=name, seconds=time.perf_counter() - start, exit=status)


def training(folder):
    """Return what a training run has measured so far, or None: its evaluations over time, and images per second."""
    try:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return None
    steps = [row for row in rows if row["kind"] == "train"]
    if not steps:
        return None
    epochs_per_step = steps[-1]["epoch"] / steps[-1]["step"]
    evaluations = [
        dict(
            epoch=row["step"] * epochs_per_step,
            **{key: row.get(key) for key in FIGURES},
            classified=row.get("classified"),
            denoised=row.get("denoised"),
        )
        for row in rows
        if row["kind"] == "evaluation"
    ]
    return dict(
        images_per_second=statistics.median(row["images_per_second"] for row in steps),
        skipped=steps[-1]["skipped"],
        evaluations=evaluations,
    )


def training_table(runs):
    """Return a table of the evaluations of training runs over time; the last of a run is on all test images."""
    lines = [f"{'run':<15} {'epoch':>6} " + " ".join(f"{key:>14}" for key in FIGURES)]
    for name, found in runs.items():
        for row in found["evaluations"]:
            cells = ["-" if row[key] is None else form.format(row[key]) for key, form in FIGURES.items()]
            lines.append(f"{name:<15} {row['epoch']:6.1f} " + " ".join(f"{cell:>14}" for cell in cells))
        lines.append(f"{name:<15} {found['images_per_second']:,.0f} images/s, {found['skipped']} steps skipped")
    last = {name: found["evaluations"][-1] for name, found in runs.items() if found["evaluations"]}
    if "joint" in last and "denoiser" in last:
        ours, theirs = last["joint"], last["denoiser"]
        gaps = [
            f"{ours[key] - theirs[key]:+.2f} dB at sigma {key.removeprefix('psnr_')}/255"
            for key in FIGURES
            if key.startswith("psnr") and None not in (ours[key], theirs[key])
        ]
        lines.append("joint against the direct denoiser: " + ", ".join(gaps))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
