"""Train the models that are compared and run every experiment on them, one command after the other.

    python -m cdn.experiments.suite --out runs/digits-suite
    python -m cdn.experiments.suite --data cifar10 --data-dir data --budget gpu --photographs Kodak24 --out runs/suite

Run again, it goes on: training resumes from its last checkpoint, and what has finished is skipped. A command that fails
is named in the table at the end, and the others run. Everything a command prints is also in OUT/logs. The budget is
that of training; experiments take their defaults, and each can be repeated alone with more images by its own command.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cdn.cli.arguments import Option, make_parser
from cdn.cli.process import run_command, run_logged
from cdn.data import DATASETS
from cdn.errors import CDNError
from cdn.experiments.stages import BUDGETS, plan
from cdn.files import make_folder
from cdn.pictures.tables import text_table

FAILED = "FAILED, see its log"
OPTIONS = (
    Option("--data", DATASETS, "digits", "data set"),
    Option("--data-dir", str, None, "its folder"),
    Option("--budget", BUDGETS, "default", "of training: as cdn.train, half an hour a model on a core, or for a GPU"),
    Option("--photographs", str, None, "folder of whole photographs to denoise (default: none)"),
    Option("--patches", str, None, "an image folder, on whose patches a model for photographs learns (default: none)"),
    Option("--only", str, None, "some of the stages, in the usual order", many=True),
    Option("--dry-run", bool, False, "print the commands and do nothing"),
    Option("--out", Path, None, "where all runs and results go", required=True),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a stage failed."""
    parser = make_parser("cdn.experiments.suite", __doc__, OPTIONS)
    text = "further options of python -m cdn.train, for all models; the last of the command line"
    parser.add_argument("--training", metavar="OPTION", nargs=argparse.REMAINDER, default=[], help=text)
    args = parser.parse_args(argv)
    stages = plan(args)
    for name in args.only or ():
        if name not in stages:
            raise CDNError(f"--only: expected some of {', '.join(stages)}, got {name!r}")
    chosen = {name: stages[name] for name in stages if name in (args.only or stages)}
    if args.dry_run:
        for stage in chosen.values():
            print(shlex.join(["python", "-m", *stage.command]))
        return 0
    make_folder(args.out / "logs")
    rows = []
    for number, (name, stage) in enumerate(chosen.items(), 1):
        print(f"\n== {name}, {number} of {len(chosen)}", flush=True)
        start = time.perf_counter()
        outcome = "done before"
        if not stage.result.exists():
            status = run_logged([sys.executable, "-um", *stage.command], args.out / "logs" / f"{name}.log")
            outcome = FAILED if status else "done"
        rows.append([name, f"{time.perf_counter() - start:.0f} s", outcome])
    print("\n" + text_table(["stage", "time", "outcome"], rows))
    return int(any(outcome == FAILED for _, _, outcome in rows))


if __name__ == "__main__":
    run_command(main)
