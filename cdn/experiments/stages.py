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
EXPERIMENTS: tuple[str, ...] = (
    "denoisers",
    "jacobian",
    "robustness",
    "outliers",
    "sampling",
    "restoration",
    "reconstruction",
)
EXPERIMENTS += ("denoising_classifier", "similarities", "out_of_domain")


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
    denoising = ["--objective", "denoising"]
    models = {
        "joint": usual,
        "classification": ["--objective", "classification", *usual],
        "denoising": [*denoising, *usual],
        "resnet": ["--model", f"resnet{suffix}", *usual],
        "resnet-clean": ["--model", f"resnet{suffix}", "--clean-share", "1", *usual],
        "denoiser": ["--model", f"denoiser{suffix}", *usual],
        "jem": ["--objective", "jem", *chains, *usual],
    }
    data = ["--data-dir", args.data_dir] if args.data_dir else []
    runs = {name: args.out / name for name in models}
    joint, patches, comparison = runs["joint"], args.out / "patches", args.out / "comparison"
    stages = {f"train-{name}": _training(runs[name], ["--data", args.data, *data, *models[name]]) for name in models}
    for name, run in runs.items():
        stages[f"evaluate-{name}"] = Stage(["cdn.evaluate", str(run), *data], run / EVALUATION)
    compare = ["cdn.experiments.compare", *map(str, runs.values()), "--out", str(comparison)]
    stages["compare"] = Stage(compare, comparison / "comparison.png")
    photographs = ["--images", args.photographs]
    if args.patches:
        folder = ["--data", "imagefolder", "--data-dir", args.patches]
        stages["train-patches"] = _training(patches, [*folder, *denoising, *usual, *PATCHES])
        if args.photographs:
            stages["photographs-patches"] = _experiment("photographs", patches, photographs)
    classifiers = ["--against", *(str(runs[name]) for name in ("classification", "resnet", "resnet-clean", "jem"))]
    options = {"robustness": classifiers, "sampling": ["--classifier", str(runs["resnet"])], "photographs": photographs}
    for name in (*EXPERIMENTS, *(["photographs"] if args.photographs else [])):
        stages[name] = _experiment(name, joint, [*options.get(name, []), *data])
    for name in ("resnet-clean", "resnet"):
        out = args.out / f"protect-{name}"
        stages[out.name] = _experiment("protect", joint, ["--classifier", str(runs[name]), *data], out)
    stages["certify"] = Stage(["cdn.certify", str(joint), *classifiers, *data], joint / "certify" / REPORT)
    stages["bounds"] = _experiment("bounds", None, [], args.out / "bounds")
    if args.data in CURVE_SIZES:
        sizes = ["--sizes", *CURVE_SIZES[args.data], *CURVE_STEPS[args.budget], *args.training]
        curves = args.out / "learning_curves"
        stages[curves.name] = _experiment(curves.name, None, ["--data", args.data, *data, *sizes], curves)
    return stages


def _experiment(name: str, run: Path | None, options: Sequence[str], out: Path | None = None) -> Stage:
    """Return the stage of an experiment on a run, if it takes one, whose report goes there unless to a folder."""
    place = ["--out", str(out)] if out else []
    command = [f"cdn.experiments.{name}", *([str(run)] if run else []), *options, *place]
    return Stage(command, (out or Path(run or "") / name) / REPORT)


def _training(run: Path, options: Sequence[str]) -> Stage:
    """Return the stage that begins a run, or goes on with one that has begun."""
    # The configuration is there from the first step on, the curves after the last.
    begun = (run / CONFIG).exists()
    return Stage(["cdn.train", *(["--resume", str(run)] if begun else [*options, "--out", str(run)])], run / CURVES)
