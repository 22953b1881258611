"""Evaluate a trained run on the test split of its data."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdn.cli.arguments import add_runtime_arguments, pick_device, positive_int
from cdn.evaluation import evaluate, predict, reliability
from cdn.model.finite import json_text
from cdn.pictures.plots import reliability_picture
from cdn.pictures.style import attempt
from cdn.run_folder.opened import open_run
from cdn.run_folder.weights import require_writable, write_atomically

SIGMAS = (15, 25, 50)
DESCRIPTION = """\
Measure a trained run on the test split of its data: accuracy and denoising at noise levels of 15, 25 and 50
grey levels of 255, calibration, and the denoising loss over the noise levels of its training. Prints a table
and writes RUN/evaluation.json and, for a model that classifies, RUN/reliability.png."""
EXAMPLES = """\
examples:
  python -m cdn.evaluate runs/digits
  python -m cdn.evaluate runs/cifar10 --data-dir data --limit 1000 --precision bf16"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    out = args.out or args.run / "evaluation.json"
    run = open_run(args.run, pick_device(args.device), args.data_dir)
    require_writable(out)
    model, split, objective = run.model, run.dataset.test, run.objective
    options: dict[str, Any] = dict(limit=args.limit, batch_size=args.batch_size, precision=args.precision)
    report = evaluate(
        model,
        split,
        sigmas=SIGMAS,
        denoising_limit=args.limit,
        levels=run.levels,
        with_ssim=True,
        objective=objective,
        progress=sys.stderr.isatty(),
        **options,
    )
    print(f"{args.run}: {min(args.limit or len(split), len(split))} test images of {run.dataset.name}")
    print(table(report))
    content: dict[str, Any] = dict(report)
    lost = [name for name, value in report.items() if value is not None and math.isnan(value)]
    if lost:
        print(
            f"note: some outputs of the model are nan or infinite: not written are {', '.join(lost)}", file=sys.stderr
        )
    if report["ece"] is not None and math.isfinite(report["ece"]):
        probabilities, labels = predict(model, split, **options)
        picture = out.with_name("reliability.png")
        if attempt(lambda: reliability_picture(probabilities[0], labels, picture), picture):
            print(f"wrote {picture}")
        content["reliability"] = {
            key: value.tolist() for key, value in reliability(probabilities[0], labels)._asdict().items()
        }
    write_atomically(out, (json_text(content, indent=2) + "\n").encode())
    print(f"wrote {out}")


def table(report: Mapping[str, float | None], sigmas: Sequence[float] = SIGMAS) -> str:
    """Return a report of :func:`cdn.evaluation.evaluate` as text: one column per noise level."""
    columns = ("clean", *(f"{sigma:g}/255" for sigma in sigmas))
    lines = [f"{'noise level':<20}" + "".join(f"{column:>10}" for column in columns)]

    def row(name: str, values: Sequence[float | None], form: str, scale: float = 1) -> None:
        cells = ["-" if value is None else form.format(value * scale) for value in values]
        lines.append(f"{name:<20}" + "".join(f"{cell:>10}" for cell in cells))

    row("accuracy (%)", [report["accuracy"], *(report[f"accuracy_sigma_{s:g}"] for s in sigmas)], "{:.2f}", scale=100)
    for metric, name, form in (("psnr", "PSNR (dB)", "{:.2f}"), ("ssim", "SSIM", "{:.4f}")):
        for key, what in (("noisy_", "noisy"), ("", "denoised")):
            row(f"{name} {what}", [None, *(report[f"{metric}_{key}{s:g}"] for s in sigmas)], form)
    if report["accuracy_noisy"] is not None:
        lines.append(f"{'accuracy (%)':<20}{100 * report['accuracy_noisy']:>10.2f}   over the noise levels of training")
    for key, name, remark in (("ece", "calibration error", ""), ("denoising_loss", "denoising loss", "identity = 1")):
        if report[key] is not None:
            lines.append(f"{name:<20}{report[key]:>10.4f}   {remark}".rstrip())
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cdn.evaluate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training run")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data (default: that of the training)")
    parser.add_argument(
        "--limit", metavar="N", type=positive_int, help="use only the first N test images (default: all)"
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=positive_int,
        default=256,
        help="images per forward; the results do not depend on it (default: %(default)s)",
    )
    add_runtime_arguments(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="where to write the figures as JSON; reliability.png goes beside it (default: RUN/evaluation.json)",
    )
    return parser
