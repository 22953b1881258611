"""Evaluate a trained run on the test split of its data."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cdn.cli.arguments import (
    DATA_DIR,
    DEVICE,
    PRECISION,
    RUN_FOLDER,
    Option,
    make_parser,
    pick_device,
    positive_int,
    run_path,
)
from cdn.evaluation import SIGMAS, evaluate, predict, reliability
from cdn.evaluation.evaluate import Report
from cdn.files import json_text, make_folder, require_writable, write_atomically
from cdn.model.inputs import sigma_key, sigma_text
from cdn.pictures.plots import reliability_picture
from cdn.pictures.style import attempt
from cdn.pictures.tables import text_table
from cdn.processes import joined
from cdn.run_folder.names import EVALUATION, RELIABILITY
from cdn.run_folder.opened import open_run
from cdn.run_folder.shipped import results_folder

DESCRIPTION = """\
Measure a trained run on the test split of its data: accuracy and denoising at noise levels of 15, 25 and 50
grey levels of 255, calibration, and the denoising loss over the noise levels of its training. Prints a table
and writes RUN/evaluation.json and, for a model that classifies, RUN/reliability.png."""
EXAMPLES = """\
examples:
  python -m cdn.evaluate runs/digits
  python -m cdn.evaluate runs/cifar10 --data-dir data --limit 1000 --precision bf16
  torchrun --nproc-per-node 2 -m -- cdn.evaluate runs/cifar10   # the same figures, each process with its share"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    out = args.out or results_folder(args.run) / EVALUATION
    device = pick_device(args.device)
    with joined(device) as processes:
        run = open_run(args.run, device, args.data_dir)
        if processes.first:
            if args.out is None:
                make_folder(out.parent)
            require_writable(out)
        split = run.dataset.test
        options: dict[str, Any] = dict(limit=args.limit, batch_size=args.batch_size, precision=args.precision)
        options["processes"] = processes
        report = evaluate(
            run.model,
            split,
            denoising_limit=args.limit,
            levels=run.levels,
            with_ssim=True,
            objective=run.config.objective,
            progress=sys.stderr.isatty(),
            **options,
        )
        told = report["ece"] is not None and math.isfinite(report["ece"])
        predicted = predict(run.model, split, **options) if told else None
    if processes.first:
        print(f"{args.run}: {min(args.limit or len(split), len(split))} test images of {run.dataset.name}")
        _tell(report, predicted, out)


def _tell(report: Report, predicted: tuple[dict[float | None, Tensor], Tensor] | None, out: Path) -> None:
    """Print a report; write it, and draw its calibration if there are probabilities and labels."""
    print(table(report))
    content: dict[str, Any] = dict(report)
    lost = [name for name, value in report.items() if value is not None and math.isnan(value)]
    if lost:
        print(
            f"note: some outputs of the model are nan or infinite: not written are {', '.join(lost)}", file=sys.stderr
        )
    if predicted is not None:
        probabilities, labels = predicted
        picture = out.with_name(RELIABILITY)
        if attempt(lambda: reliability_picture(probabilities[0], labels, picture), picture):
            print(f"wrote {picture}")
        content["reliability"] = {
            key: value.tolist() for key, value in reliability(probabilities[0], labels)._asdict().items()
        }
    write_atomically(out, (json_text(content, indent=2) + "\n").encode())
    print(f"wrote {out}")


def table(report: Mapping[str, float | None], sigmas: Sequence[float] = SIGMAS) -> str:
    """Return a report of :func:`cdn.evaluation.evaluate` as text: one column per noise level."""
    greys = list(map(sigma_key, sigmas))

    def row(name: str, keys: Sequence[str | None], form: str, scale: float = 1) -> list[str | None]:
        values = [report[key] if key else None for key in keys]
        return [name, *(None if value is None else form.format(scale * value) for value in values)]

    rows = [row("accuracy (%)", ["accuracy", *(f"accuracy_sigma_{g}" for g in greys)], "{:.2f}", 100)]
    for metric, title, form in (("psnr", "PSNR (dB)", "{:.2f}"), ("ssim", "SSIM", "{:.4f}")):
        for key, what in (("noisy_", "noisy"), ("", "denoised")):
            rows.append(row(f"{title} {what}", [None, *(f"{metric}_{key}{g}" for g in greys)], form))
    lines = [text_table(["noise level", "clean", *map(sigma_text, sigmas)], rows)]
    for key, title, form in (
        ("accuracy_noisy", "accuracy over the noise levels of training", "{:.2%}"),
        ("ece", "calibration error", "{:.4f}"),
        ("denoising_loss", "denoising loss (identity: 1)", "{:.4f}"),
    ):
        if (value := report[key]) is not None:
            lines.append(f"{title}: {form.format(value)}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    options = (
        DATA_DIR,
        Option("--limit", positive_int, None, "use only the first N test images (default: all)"),
        Option("--batch-size", positive_int, 256, "images per forward; the results do not depend on it"),
        DEVICE,
        PRECISION,
        Option(
            "--out",
            Path,
            None,
            "file for the figures; a picture goes beside it (default: RUN/evaluation.json; of a name, results/NAME/)",
        ),
    )
    parser = make_parser("cdn.evaluate", DESCRIPTION, options, epilog=EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=run_path, help=RUN_FOLDER)
    return parser
