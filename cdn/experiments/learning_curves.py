"""Measure the test error against the number of training images, for both tasks together and for each alone.

    python -m cdn.experiments.learning_curves --data digits --sizes 100 300 1437 --seeds 0 1 --steps 500
    python -m cdn.experiments.learning_curves --data cifar10 --data-dir data --sizes 500 5000 50000 --steps 3000 --fused

Trains joint, classification-only and denoising-only models, all for the same number of steps, on the first images of
one random order per seed, so that a smaller training set is part of a larger one. Fits the form b + v/n of
python -m cdn.experiments.bounds to each curve and states where the fits cross. Every other option is one of
python -m cdn.train, and holds for all models.

Every finished run is one line of OUT/runs.jsonl and is not repeated; one that was interrupted goes on from its last
checkpoint. Writes OUT/report.json and OUT/picture.png.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cdn.cli.arguments import pick_device, positive_int, run_command, seed_number
from cdn.commands import train as train_command
from cdn.data import load_dataset
from cdn.errors import CDNError
from cdn.experiments.bounds import crossings
from cdn.experiments.runner import Results, save_figure, text_table, write_report
from cdn.methods.learning_bounds import Bound, fit_bound
from cdn.pictures.style import BLUE, GREEN, GREY, ORANGE, named, tidy
from cdn.run_folder.journal import Journal
from cdn.run_folder.weights import CONFIG, load_config, make_folder
from cdn.training.loop import train
from cdn.training.settings import Settings

# The objective, the number of training images and the seed of a run.
Plan = tuple[str, int, int]
# Numbers of training images and measured values, arrays of one length, by objective.
Curves = dict[str, tuple[np.ndarray, np.ndarray]]
# Bias, variance and misfit, by objective.
Fits = dict[str, dict[str, float]]
COLORS = {"joint": BLUE, "classification": ORANGE, "denoising": GREEN}
MEASURES = {
    "error": "test error, clean images",
    "error_noisy": "test error, noisy images",
    "denoising_loss": "denoising loss (identity: 1)",
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command; return 130 if it was interrupted."""
    start = time.perf_counter()
    args, settings = parse(argv)
    first = next(iter(settings.values()))
    _check_sizes(args.sizes, first)
    make_folder(args.out)
    journal = Journal(args.out / "runs.jsonl")
    for plan, chosen in settings.items():
        if not any(_same(row, chosen) for row in journal.rows):
            row = _run(args.out, plan, chosen)
            if row is None:
                return 130
            journal.append(row)
    rows = [next(row for row in journal.rows if _same(row, chosen)) for chosen in settings.values()]
    curves = {measure: _curves(rows, measure) for measure in MEASURES}
    fits = {measure: _fits(rows, measure) for measure in MEASURES}
    points = [dict(measure=measure, **row) for measure in MEASURES for row in _crossings(fits[measure])]
    print(text_table(["objective", "images n", *MEASURES.values(), "seconds"], _table(rows, args)))
    print()
    print(
        text_table(
            ["fit of b + v/n", "objective", "b", "v", "misfit"],
            [
                [MEASURES[measure], objective, fit["bias"], fit["variance"], f"{fit['misfit']:.0%}"]
                for measure in MEASURES
                for objective, fit in fits[measure].items()
            ],
        )
    )
    print()
    for found in points:
        inside = "" if min(args.sizes) <= found["n"] <= max(args.sizes) else ", outside of what was measured"
        print(
            f"fits of {MEASURES[found['measure']]} cross at n* = {found['n']:.4g}: {found['first']}, "
            f"{found['second']}{inside}"
        )
    if not points:
        print("no two fits of the same measure cross")
    save_figure(draw(curves, fits, args.sizes, f"{first.data}, {args.steps:,} steps"), args.out / "picture.png")
    write_report(args.out, args, dict(runs=rows, fits=fits, crossings=points), start, training=first.as_dict())
    return None


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[Plan, Settings]]:
    """Return the parsed options, and the settings of every run by (objective, number of images, seed)."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    common = _training_options(parser, rest)
    plans = [(objective, n, seed) for objective in args.objectives for n in args.sizes for seed in args.seeds]
    return args, {
        plan: Settings(**common, objective=plan[0], train_images=plan[1], seed=plan[2], steps=args.steps)
        for plan in plans
    }


def draw(curves: dict[str, Curves], fits: dict[str, Fits], sizes: Sequence[int], title: str) -> Figure:
    """Draw the measured values of every seed, their means, and the fits (dashed), a panel per measure.

    Args:
        curves: for every measure a dict from the objective to (n, values), arrays of equal length.
        fits: for every measure a dict from the objective to dict(bias, variance, misfit).
        sizes: the numbers of training images.
        title: above all panels.
    """
    n = np.geomspace(min(sizes), max(sizes), 200)
    measures = [measure for measure in curves if curves[measure]]
    figure = Figure(figsize=(4.2 * len(measures), 3.6), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures):
        for objective, (x, y) in curves[measure].items():
            color = COLORS[objective]
            axes.plot(x, y, ".", color=color, markersize=5, alpha=0.5)
            levels = np.unique(x)
            axes.plot(
                levels,
                [y[x == level].mean() for level in levels],
                "o-",
                color=color,
                markersize=4,
                linewidth=1.5,
                label=named(objective),
            )
            fit = fits[measure].get(objective)
            if fit:
                axes.plot(n, fit["bias"] + fit["variance"] / n, "--", color=color, linewidth=0.9)
        axes.plot([], [], "--", color=GREY, linewidth=0.9, label="fit of b + v/n")
        axes.set_xscale("log")
        tidy(axes, xlabel="training images n", title=MEASURES[measure])
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.tick_params(axis="x", which="minor", labelbottom=False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _run(out: Path, plan: Plan, settings: Settings) -> Results | None:
    """Train one model, or go on with it, and return its row; None if it was interrupted."""
    folder = out / "{}-{}-seed{}".format(*plan)
    resume = (folder / CONFIG).exists()
    if resume and not Settings.from_dict(load_config(folder)["training"]).agree(settings):
        raise CDNError(f"{folder} holds a run of other settings: remove it, or choose another --out")
    start = time.perf_counter()
    result = train(settings, folder, pick_device(settings.device), resume=resume)
    if result is None:
        return None
    error = {
        f"error{suffix}": None if (accuracy := result[f"accuracy{suffix}"]) is None else 1 - accuracy
        for suffix in ("", "_noisy")
    }
    return dict(
        settings=settings.as_dict(),
        objective=plan[0],
        n=plan[1],
        seed=plan[2],
        **error,
        denoising_loss=result["denoising_loss"],
        seconds=round(time.perf_counter() - start, 1),
    )


def _same(row: Results, settings: Settings) -> bool:
    return Settings.from_dict(row["settings"]).agree(settings)


def _curves(rows: Iterable[Results], measure: str) -> Curves:
    """Return (n, values) of every objective that has the measure."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        # A classification-only model is never asked to denoise, and the class logits of a denoiser are untrained.
        measured = "classification" if measure == "denoising_loss" else "denoising"
        if row["objective"] != measured and row[measure] is not None:
            curves.setdefault(row["objective"], []).append((row["n"], row[measure]))
    return {
        objective: (np.array([n for n, _ in points], dtype=float), np.array([y for _, y in points], dtype=float))
        for objective, points in curves.items()
    }


def _fits(rows: Iterable[Results], measure: str) -> Fits:
    """Return a fit of every curve with two sizes or more and no error of 0, which has no relative deviation."""
    fits = {}
    for objective, (n, values) in _curves(rows, measure).items():
        if len(np.unique(n)) > 1 and values.min() > 0:
            bound, misfit = fit_bound(n, values)
            fits[objective] = dict(bound._asdict(), misfit=misfit)
    return fits


def _crossings(fits: Fits) -> list[dict[str, Any]]:
    bounds = {objective: Bound(fit["bias"], fit["variance"]) for objective, fit in fits.items()}
    return [dict(first=a, second=b, n=n, value=value) for a, b, n, value in crossings(bounds)]


def _table(rows: Sequence[Results], args: argparse.Namespace) -> list[list[object]]:
    """Return the cells of one row per objective and size: means over the seeds."""
    cells = []
    for objective in args.objectives:
        for n in args.sizes:
            group = [row for row in rows if (row["objective"], row["n"]) == (objective, n)]
            means = []
            for measure in MEASURES:
                curve = _curves(group, measure)
                means.append(float(curve[objective][1].mean()) if curve else None)
            cells.append([objective, n, *means, sum(row["seconds"] for row in group)])
    return cells


def _training_options(parser: argparse.ArgumentParser, rest: Sequence[str]) -> dict[str, Any]:
    """Return the options of the training command among those that are not ours."""
    command = train_command.make_parser()
    command.prog, command.usage = parser.prog, parser.format_usage().removeprefix("usage: ")
    options = vars(command.parse_args(rest))
    for name in ("out", "resume", "download", "profile"):
        options.pop(name)
    for name in ("seed", "objective", "train_images", "epochs"):
        if name in options:
            raise CDNError(f"--{name.replace('_', '-')} is what this experiment varies or fixes itself: leave it out")
    return options


def _check_sizes(sizes: Sequence[int], settings: Settings) -> None:
    """Refuse sizes that the data or the batch do not allow before any time is spent."""
    dataset = load_dataset(settings.data, settings.data_dir, image_size=settings.image_size)
    if min(sizes) < settings.batch_size or max(sizes) > len(dataset.train):
        raise CDNError(
            f"--sizes: expected {settings.batch_size} (one batch) to {len(dataset.train)} (all images), "
            f"got {min(sizes)} to {max(sizes)}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cdn.experiments.learning_curves",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(experiment="learning_curves")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=positive_int,
        metavar="N",
        default=[100, 300, 1000],
        help="numbers of training images (default: 100 300 1000)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=seed_number,
        metavar="SEED",
        default=[0, 1],
        help="of the choice of images, weights and noise; one run each (default: 0 1)",
    )
    parser.add_argument(
        "--objectives",
        nargs="+",
        choices=COLORS,
        metavar="NAME",
        default=list(COLORS),
        help=f"of {', '.join(COLORS)} (default: all)",
    )
    parser.add_argument("--steps", type=positive_int, default=1000, help="length of every run (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("runs/learning_curves"),
        help="where the runs and results go (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
