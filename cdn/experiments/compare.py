"""Put finished runs side by side: one table, one picture of their curves.

    python -m cdn.experiments.compare RUN [RUN ...] --out FOLDER

Takes the last evaluation of each training run and, where ``python -m cdn.evaluate RUN`` was run, its fuller figures:
SSIM, denoising of more images, and the reliability of the predicted probabilities. Writes FOLDER/comparison.md,
FOLDER/comparison.png and, if there is any, FOLDER/reliability.png; docs/results.md is made from these.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from matplotlib.figure import Figure

from cdn.cli.arguments import run_command
from cdn.errors import CDNError
from cdn.evaluation.metrics import Reliability
from cdn.pictures.plots import reliability_comparison
from cdn.pictures.style import attempt, named, save, tidy
from cdn.run_folder.weights import METRICS, load_config, make_folder, write_atomically

JEM_REMARK = (
    "A joint energy model (jem) learns the density of almost clean images: its figures of denoising are what "
    "its score does at noise levels that it never saw."
)
FIGURES = [
    ("classified", "{:,}", "test images classified"),
    ("denoised", "{:,}", "test images denoised"),
    ("accuracy", "{:.1%}", "accuracy, clean"),
    ("accuracy_noisy", "{:.1%}", "accuracy, training noise"),
    *[(f"accuracy_sigma_{s}", "{:.1%}", f"accuracy, sigma {s}/255") for s in (15, 25, 50)],
    ("ece", "{:.3f}", "calibration error"),
    ("denoising_loss", "{:.3f}", "denoising loss (identity: 1)"),
    *[(f"psnr_{s}", "{:.2f}", f"PSNR dB, sigma {s}/255") for s in (15, 25, 50)],
    *[(f"ssim_{s}", "{:.3f}", f"SSIM, sigma {s}/255") for s in (15, 25, 50)],
]


class Finished(TypedDict):
    """What is read of a run: its name and configuration, the rows of its log, and its figures."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluation: dict[str, Any]


def read_run(path: Path) -> Finished:
    """Return the name, configuration, rows and evaluation of a run.

    Raises:
        CDNError: the run has no evaluation yet.
    """
    config = load_config(path)
    file = path / METRICS
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        evaluation = [row for row in rows if row["kind"] == "evaluation"][-1]
        file = path / "evaluation.json"
        if file.exists():
            evaluation = evaluation | json.loads(file.read_text())
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CDNError(f"{file} has no evaluation to compare: {error}") from None
    return dict(name=path.name, config=config, rows=rows, evaluation=evaluation)


def table(runs: Sequence[Finished]) -> str:
    """Return a Markdown table: one column per run, one row per figure."""
    lines = ["| | " + " | ".join(run["name"] for run in runs) + " |", "|---|" + "---|" * len(runs)]

    def row(name: str, cells: Sequence[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    row(
        "model, objective",
        [
            f"{r['config']['training']['model']}, width {r['config']['training']['width']}, "
            f"{r['config']['training']['objective']}"
            for r in runs
        ],
    )
    row("parameters", [f"{r['config']['parameters']:,}" for r in runs])
    row("steps x batch", [f"{r['config']['total_steps']:,} x {r['config']['training']['batch_size']}" for r in runs])
    row("minutes (threads)", [f"{r['rows'][-1]['seconds'] / 60:.0f} ({r['config']['threads']})" for r in runs])
    row("images/s, median", [f"{_median(r['rows'], 'images_per_second'):.0f}" for r in runs])
    row("steps skipped", [str(_last(r["rows"], "skipped")) for r in runs])
    for key, form, name in FIGURES:
        values = [r["evaluation"].get(key) for r in runs]
        if any(value is not None for value in values):
            row(name, ["-" if value is None else form.format(value) for value in values])
    if any(run["config"]["training"]["objective"] == "jem" for run in runs):
        lines += ["", JEM_REMARK]
    return "\n".join(lines) + "\n"


def picture(runs: Sequence[Finished], path: Path) -> None:
    """Draw the training losses and the evaluations of all runs over their steps."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = figure.subplots(1, 4)
    wanted = [
        ("train", "classification", "cross-entropy (training)", 1),
        ("train", "denoising", "denoising loss (training)", 1),
        ("evaluation", "accuracy_noisy", "test accuracy, training noise (%)", 100),
        ("evaluation", "psnr_25", "test PSNR, sigma 25/255 (dB)", 1),
    ]
    for axes, (kind, key, title, factor) in zip(panels, wanted):
        for number, run in enumerate(runs):
            points = [(r["step"], factor * r[key]) for r in run["rows"] if r["kind"] == kind and r.get(key) is not None]
            if points:
                steps, values = zip(*_thin(points))
                axes.plot(steps, values, label=named(run["name"]), color=f"C{number}", linewidth=1.2)
        axes.set_title(title, fontsize=9)
        if kind == "train":
            axes.set_yscale("log")  # the first steps are far off and would flatten all others
        tidy(axes, xlabel="step")
    for axes in panels[:2]:
        if axes.lines:
            axes.legend(fontsize=7, frameon=False)
    save(figure, path)


def reliabilities(runs: Sequence[Finished]) -> dict[str, Reliability]:
    """Return the reliability of the runs that classify and were evaluated, by name."""
    found = {run["name"]: run["evaluation"].get("reliability") for run in runs}
    return {
        name: Reliability(*(torch.tensor(data[key], dtype=torch.float64) for key in Reliability._fields))
        for name, data in found.items()
        if data
    }


def _thin(points: Sequence[tuple[float, float]], count: int = 80) -> list[tuple[float, ...]]:
    """Average neighbouring points, so that a curve of thousands can be read."""
    size = max(len(points) // count, 1)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(sum(column) / len(group) for column in zip(*group)) for group in groups]


def _median(rows: Sequence[dict[str, Any]], key: str) -> float:
    values = sorted(r[key] for r in rows if r.get(key) is not None)
    return values[len(values) // 2]


def _last(rows: Sequence[dict[str, Any]], key: str) -> Any:
    return next(r[key] for r in reversed(rows) if key in r)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m cdn.experiments.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, in the order of the columns")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the table and picture go")
    args = parser.parse_args(argv)
    runs = [read_run(path) for path in args.runs]
    make_folder(args.out)
    # A name of a folder need not be UTF-8.
    write_atomically(args.out / "comparison.md", table(runs).encode(errors="backslashreplace"))
    curves, diagram = args.out / "comparison.png", args.out / "reliability.png"
    attempt(lambda: picture(runs, curves), curves)
    if found := reliabilities(runs):
        attempt(lambda: reliability_comparison(found, diagram), diagram)
    print(table(runs))


if __name__ == "__main__":
    run_command(main)
