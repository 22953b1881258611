"""Put finished runs side by side: one table, one picture of their curves.

    python -m cdn.experiments.compare RUN [RUN ...] --out FOLDER

Takes the last evaluation of each training run and, where ``python -m cdn.evaluate RUN`` was run, its fuller figures:
SSIM, denoising of more images, and the reliability of the predicted probabilities. Writes FOLDER/comparison.md,
FOLDER/comparison.png and, if there is any, FOLDER/reliability.png; docs/results.md has such tables.
"""

from collections.abc import Sequence
from pathlib import Path

from cdn.cli.arguments import make_parser
from cdn.cli.process import run_command
from cdn.files import make_folder, write_atomically
from cdn.pictures.plots import reliability_comparison
from cdn.pictures.run_comparison import comparison_picture, comparison_table, read_run, reliabilities
from cdn.pictures.style import attempt


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("cdn.experiments.compare", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, in the order of the columns")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the table and picture go")
    args = parser.parse_args(argv)
    runs = [read_run(path) for path in args.runs]
    make_folder(args.out)
    table = comparison_table(runs)
    # A name of a folder need not be UTF-8.
    write_atomically(args.out / "comparison.md", table.encode(errors="backslashreplace"))
    curves, diagram = args.out / "comparison.png", args.out / "reliability.png"
    attempt(lambda: comparison_picture(runs, curves), curves)
    if found := reliabilities(runs):
        attempt(lambda: reliability_comparison(found, diagram), diagram)
    print(table)


if __name__ == "__main__":
    run_command(main)
