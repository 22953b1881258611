"""The stages of the suite: every training, evaluation and experiment as a command, and what each leaves last."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cdn.experiments.runner import REPORT
from cdn.run_folder.names import CONFIG, CURVES, EVALUATION

# Options of training by budget, and what a joint energy model adds to them: shorter chains than its paper's, so that
# its training takes two to three times as long as that of the others, and few enough that each of them moves often.
# Learning curves are a dozen runs of their own and get fewer steps.
_CPU = ["--width", "24", "--batch-size", "64", "--precision", "bf16", "--device", "cpu", "--steps"]
_GPU = ["--batch-size", "256", "--precision", "bf16", "--device", "cuda", "--epochs"]
BUDGETS: dict[str, tuple[list[str], list[str]]] = {
    "default": ([], []),
    "cpu": ([*_CPU, "5400"], ["--jem-steps", "5", "--jem-buffer", "1000"]),
    "gpu": ([*_GPU, "200"], ["--jem-steps", "5"]),
}
CURVE_STEPS: dict[str, list[str]] = {
    "default": [],
    "cpu": [*_CPU, "800", "--width", "16"],
    "gpu": ["--batch-size", "64", "--precision", "bf16", "--device", "cuda", "--steps", "8000"],
}
CURVE_SIZES = {"digits": ("100", "300", "1437"), "cifar10": ("100", "1000", "10000", "50000")}
PATCHES = ["--crop-size", "48", "--crop-padding", "0", "--batch-size", "32"]


class Stage(NamedTuple):
    """A command of the suite.

    Attributes:
        command: module and arguments, as after ``python -m``.
        result: the file that it writes last; where that exists, the stage is done.
    """

    command: list[str]
    result: Path


def plan(args: argparse.Namespace) -> dict[str, Stage]:
    """Return all stages in their order, by name.

    Args:
        args: the parsed options of the suite.
    """
    suffix = "-small" if args.data == "digits" else "18"
    usual, chains = BUDGETS[args.budget]
    usual = usual + args.training
    denoising = ["--objective", "denoising", "--clean-share", "0"]
    models = {
        "joint": usual,
        "classification": ["--objective", "classification", *usual],
        "denoising": [*denoising, *usual],
        "resnet": ["--model", f"resnet{suffix}", *usual],
        "resnet-clean": ["--model", f"resnet{suffix}", "--clean-share", "1", *usual],
        "denoiser": ["--model", f"denoiser{suffix}", "--clean-share", "0", *usual],
        "jem": ["--objective", "jem", *chains, *usual],
    }
    data = ["--data-dir", args.data_dir] if args.data_dir else []
    runs = {name: args.out / name for name in models}
    stages = {
        f"train-{name}": _training(runs[name], ["--data", args.data, *data, *options])
        for name, options in models.items()
    }
    for name, run in runs.items():
        stages[f"evaluate-{name}"] = Stage(["cdn.evaluate", str(run), *data], run / EVALUATION)
    stages["compare"] = Stage(
        ["cdn.experiments.compare", *map(str, runs.values()), "--out", str(args.out / "comparison")],
        args.out / "comparison" / "comparison.png",
    )
    classifiers = ["--against", *(str(runs[name]) for name in ("classification", "resnet", "resnet-clean", "jem"))]
    experiments = {
        "denoisers": [],
        "jacobian": [],
        "robustness": classifiers,
        "outliers": [],
        "sampling": ["--classifier", str(runs["resnet"])],
        "restoration": [],
        "reconstruction": [],
        "denoising_classifier": [],
        "similarities": [],
        "out_of_domain": [],
    }
    if args.photographs:
        experiments["photographs"] = ["--images", args.photographs]
    if args.patches:
        patches = args.out / "patches"
        stages["train-patches"] = _training(
            patches, ["--data", "imagefolder", "--data-dir", args.patches, *denoising, *usual, *PATCHES]
        )
        if args.photographs:
            stages["photographs-patches"] = Stage(
                ["cdn.experiments.photographs", str(patches), "--images", args.photographs],
                patches / "photographs" / REPORT,
            )
    for name, options in experiments.items():
        stages[name] = Stage(
            [f"cdn.experiments.{name}", str(runs["joint"]), *options, *data], runs["joint"] / name / REPORT
        )
    for name in ("resnet-clean", "resnet"):
        out = args.out / f"protect-{name}"
        stages[out.name] = Stage(
            ["cdn.experiments.protect", str(runs["joint"]), "--classifier", str(runs[name]), *data, "--out", str(out)],
            out / REPORT,
        )
    stages["certify"] = Stage(
        ["cdn.certify", str(runs["joint"]), *classifiers, *data], runs["joint"] / "certify" / REPORT
    )
    stages["bounds"] = Stage(
        ["cdn.experiments.bounds", "--out", str(args.out / "bounds")], args.out / "bounds" / REPORT
    )
    if args.data in CURVE_SIZES:
        curves = args.out / "learning_curves"
        stages[curves.name] = Stage(
            [
                "cdn.experiments.learning_curves",
                "--data",
                args.data,
                *data,
                "--sizes",
                *CURVE_SIZES[args.data],
                *CURVE_STEPS[args.budget],
                *args.training,
                "--out",
                str(curves),
            ],
            curves / REPORT,
        )
    return stages


def _training(run: Path, options: Sequence[str]) -> Stage:
    """Return the stage that begins a run, or goes on with one that has begun."""
    # The configuration is there from the first step on, the curves after the last.
    begun = (run / CONFIG).exists()
    return Stage(["cdn.train", *(["--resume", str(run)] if begun else [*options, "--out", str(run)])], run / CURVES)
