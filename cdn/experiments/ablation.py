"""Choose the defaults: train many small variants on CIFAR-10 and tabulate what each choice costs.

    python -m cdn.experiments.ablation --data-dir DIR --out runs/ablation [--study recipe] [--only NAME ...] [--seeds 0]

The study "model" changes one thing at a time in a shallow network on small crops; "recipe" compares optimizers and
weights of the two terms on whole images, in a deeper network; "seconds" gives every variant the same time of a
processor, and so does "balance", which asks what a classifier pays as a denoiser.

Every run is one line of OUT/STUDY.jsonl; finished ones are not repeated, so the sweep can be interrupted, and two
processes with different ``--seeds`` can share the work. ``--table`` prints the tables of docs/ablations.md.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from cdn.cli.arguments import Option, make_parser, positive_int, seed_number
from cdn.cli.process import run_command
from cdn.data import load_dataset
from cdn.files import json_text, make_folder
from cdn.run_folder.journal import Journal
from cdn.training.studies import STUDIES, measure_variant, study_table, train_variant

OPTIONS = (
    Option("--data-dir", str, None, "folder of the CIFAR-10 distribution"),
    Option("--out", Path, Path("runs/ablation"), "where the rows go"),
    Option("--study", STUDIES, "model", "what to vary"),
    Option("--only", str, None, "variants to run (default: all)", many=True),
    Option("--seeds", seed_number, [0, 1], "a run of each", many=True),
    Option("--steps", positive_int, None, "of every run (default: those of the study)"),
    Option("--table", bool, False, "only print the table of what has been run"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    names = " ".join(f"{study}: {'; '.join(variants)}." for study, (_, variants) in STUDIES.items())
    parser = make_parser("cdn.experiments.ablation", __doc__, OPTIONS, epilog=f"variants of {names}")
    args = parser.parse_args(argv)
    base, variants = STUDIES[args.study]
    for name in args.only or ():
        if name not in variants:
            parser.error(f"--only: {name!r} is no variant of the study {args.study!r}: {'; '.join(variants)}")
    log = args.out / f"{args.study}.jsonl"
    if args.table:
        print(study_table(Journal(log).rows, variants))
        return
    make_folder(args.out)
    data = load_dataset("cifar10", args.data_dir)
    for name in args.only or variants:
        for seed in args.seeds:
            options = base | variants[name]
            steps = options["steps"] = args.steps or options["steps"]
            journal = Journal(log)  # another process may have added rows
            if any((row["name"], row["seed"], row["steps"]) == (name, seed, steps) for row in journal.rows):
                continue
            model, seconds = train_variant(data, options, seed)
            versions = dict(threads=torch.get_num_threads(), torch=torch.__version__)
            row = dict(name=name, seed=seed, seconds=round(seconds, 1), **versions, **options)
            row |= measure_variant(model, data, options)
            journal.append(row)
            print(json_text(row), flush=True)


if __name__ == "__main__":
    run_command(main)
