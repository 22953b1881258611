"""Finished runs side by side: a table, and a picture of their curves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from cdn.errors import CDNError
from cdn.evaluation.metrics import Reliability
from cdn.pictures.style import named, save, tidy
from cdn.pictures.tables import text_table
from cdn.run_folder.config import RunConfig, read_config
from cdn.run_folder.journal import Row, read_rows
from cdn.run_folder.names import EVALUATION, METRICS

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


class Finished(NamedTuple):
    """What is read of a run: its name and configuration, the rows of its log, and its figures."""

    name: str
    config: RunConfig
    rows: list[Row]
    evaluation: dict[str, Any]


def read_run(path: Path) -> Finished:
    """Return the name, configuration, rows and evaluation of a run.

    Raises:
        CDNError: the run has no evaluation yet, or figures that cannot be shown.
    """
    config, rows, file = read_config(path), read_rows(path / METRICS), path / EVALUATION
    evaluations = [row for row in rows if row.get("kind") == "evaluation"]
    if not evaluations:
        raise CDNError(f"{path / METRICS} has no evaluation to compare")
    try:
        fuller = json.loads(file.read_text()) if file.exists() else {}
        run = Finished(path.name, config, rows, evaluations[-1] | fuller)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CDNError(f"{file} has no evaluation to compare: {error}") from None
    try:
        comparison_table([run])
        reliabilities([run])
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, StopIteration) as error:
        raise CDNError(f"{path}: its configuration or figures are damaged: {type(error).__name__}: {error}") from None
    return run


def comparison_table(runs: Sequence[Finished]) -> str:
    """Return a Markdown table: one column per run, one row per figure."""
    rows: list[list[object]] = [
        ["model, objective", *("{model}, width {width}, {objective}".format(**run.config.training) for run in runs)],
        ["parameters", *(f"{run.config.parameters:,}" for run in runs)],
        ["steps x batch", *(f"{run.config.total_steps:,} x {run.config.training['batch_size']}" for run in runs)],
        ["minutes (threads)", *(f"{run.rows[-1]['seconds'] / 60:.0f} ({run.config.threads})" for run in runs)],
        ["images/s, median", *(f"{_median(run.rows, 'images_per_second'):.0f}" for run in runs)],
        ["steps skipped", *(_last(run.rows, "skipped") for run in runs)],
    ]
    for key, form, name in FIGURES:
        values = [run.evaluation.get(key) for run in runs]
        if any(value is not None for value in values):
            rows.append([name, *(None if value is None else form.format(value) for value in values)])
    table = text_table(["", *(run.name for run in runs)], rows) + "\n"
    return table + (f"\n{JEM_REMARK}\n" if any(run.config.objective == "jem" for run in runs) else "")


def comparison_picture(runs: Sequence[Finished], path: Path) -> None:
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
            points = [(r["step"], factor * r[key]) for r in run.rows if r["kind"] == kind and r.get(key) is not None]
            if points:
                steps, values = zip(*_thin(points))
                axes.plot(steps, values, label=named(run.name), color=f"C{number}", linewidth=1.2)
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
    found = {run.name: run.evaluation.get("reliability") for run in runs}
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
