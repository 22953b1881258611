"""Measure the test error against the number of training images, for both tasks together and for each alone.

    python -m cdn.experiments.learning_curves --data digits --sizes 100 300 1437 --seeds 0 1 --steps 500
    python -m cdn.experiments.learning_curves --data cifar10 --data-dir data --sizes 500 5000 50000 --steps 3000

Trains joint, classification-only and denoising-only models, all for the same number of steps, on the first images of
one random order per seed, so that a smaller training set is part of a larger one. Fits the form b + v/n of
python -m cdn.experiments.bounds to each curve and states where the fits cross. Every other option is one of
python -m cdn.train, and holds for all models.

Every finished run is one line of OUT/runs.jsonl and is not repeated; one that was interrupted goes on from its last
checkpoint. Writes OUT/report.json and OUT/picture.png.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdn.cli.arguments import make_parser, pick_device
from cdn.cli.process import run_command
from cdn.cli.training import training_parser
from cdn.errors import CDNError
from cdn.experiments.options import OPTIONS
from cdn.experiments.runner import Findings, add_out, tell
from cdn.files import make_folder
from cdn.methods.learning_bounds import MEASURES, crossings_of_fits, curves_of, fits_of
from cdn.pictures.learning import fits_text, learning_figure, learning_table
from cdn.run_folder.journal import Journal
from cdn.training.repeatable import Plan, check_sizes, same_steps, train_once
from cdn.training.settings import Settings


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command; return 130 if it was interrupted."""
    start = time.perf_counter()
    args, settings = parse(argv)
    settings = {plan: chosen.decided(pick_device(chosen.device)) for plan, chosen in settings.items()}
    check_sizes(args.sizes, first := next(iter(settings.values())))
    make_folder(args.out)
    journal = Journal(args.out / "runs.jsonl")
    for plan, chosen in settings.items():
        if not any(same_steps(row, chosen) for row in journal.rows):
            row = train_once(args.out / "{}-{}-seed{}".format(*plan), plan, chosen, pick_device(chosen.device))
            if row is None:
                return 130
            journal.append(row)
    rows = [next(row for row in journal.rows if same_steps(row, chosen)) for chosen in settings.values()]
    curves = {measure: curves_of(rows, measure) for measure in MEASURES}
    fits = {measure: fits_of(rows, measure) for measure in MEASURES}
    points = [dict(measure=measure, **row) for measure in MEASURES for row in crossings_of_fits(fits[measure])]
    text = learning_table(rows, args.objectives, args.sizes), fits_text(fits, points, args.sizes)
    draw = lambda: learning_figure(curves, fits, args.sizes, f"{first.data}, {args.steps:,} steps")
    found = Findings(dict(runs=rows, fits=fits, crossings=points), text, {"picture.png": draw})
    tell(found, args.out, args, start, training=first.as_dict())
    return None


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[Plan, Settings]]:
    """Return the parsed options, and the settings of every run by (objective, number of images, seed)."""
    parser = make_parser("cdn.experiments.learning_curves", __doc__, OPTIONS["learning_curves"][""], allow_abbrev=False)
    parser.set_defaults(experiment="learning_curves")
    add_out(parser, "runs/learning_curves", Path("runs/learning_curves"))
    args, rest = parser.parse_known_args(argv)
    command = training_parser()
    command.prog, command.usage = parser.prog, parser.format_usage().removeprefix("usage: ")
    common: dict[str, Any] = vars(command.parse_args(rest))
    for name in ("out", "resume", "download", "profile"):
        common.pop(name)
    for name in ("seed", "objective", "train_images", "epochs"):
        if name in common:
            raise CDNError(f"--{name.replace('_', '-')} is what this experiment varies or fixes itself: leave it out")
    plans = [(objective, n, seed) for objective in args.objectives for n in args.sizes for seed in args.seeds]
    settings = lambda o, n, seed: Settings(**common, objective=o, train_images=n, seed=seed, steps=args.steps)
    return args, {plan: settings(*plan) for plan in plans}


if __name__ == "__main__":
    run_command(main)
