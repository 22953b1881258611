"""Draw bounds b + v/n on the error of learning from n training images, and where they cross.

    python -m cdn.experiments.bounds
    python -m cdn.experiments.bounds --curve generative 0.1 2 --curve discriminative 0.05 20 --images 10 100000

After figure 1 of Thiry & Guth (arXiv 2410.03505): modeling all of the image (generative) has a larger bias b and a
smaller variance v than modeling the class alone (discriminative), so it is better up to
n* = (v_d - v_g) / (b_g - b_d) images and worse beyond. The constants are free parameters: those used by default are
made up, and show the shape only. The measured counterpart is python -m cdn.experiments.learning_curves.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from cdn.cli.arguments import make_parser, nonnegative_float, positive_float
from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import Findings, add_out, tell
from cdn.files import make_folder
from cdn.methods.learning_bounds import Bound, crossings
from cdn.pictures.learning import bounds_figure
from cdn.pictures.tables import text_table

DEFAULT = {"generative": Bound(0.1, 2.0), "discriminative": Bound(0.05, 20.0)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    start = time.perf_counter()
    args = _parser().parse_args(argv)
    low, high = args.images
    if not low < high:
        raise CDNError(f"--images: expected LOW < HIGH, got {low:g} and {high:g}")
    curves = _curves(args.curve) if args.curve else DEFAULT
    points = crossings(curves)
    make_folder(args.out)
    constants = text_table(["bound", "bias b", "variance v"], [[name, *bound] for name, bound in curves.items()])
    rows = [[f"{a}, {b}", n, error] for a, b, n, error in points]
    equal = text_table(["equal for", "at n*", "error there"], rows) if rows else "no two of them cross at any n > 0"
    results = dict(
        bounds={name: bound._asdict() for name, bound in curves.items()},
        crossings=[dict(first=a, second=b, n=n, error=error) for a, b, n, error in points],
    )
    draw = lambda: bounds_figure(curves, points, low, high)
    tell(Findings(results, (constants, equal), {"picture.png": draw}), args.out, args, start)


def _curves(options: Iterable[Sequence[str]]) -> dict[str, Bound]:
    """Return the bounds that ``--curve`` named."""
    curves: dict[str, Bound] = {}
    for name, *values in options:
        if name in curves:
            raise CDNError(f"--curve: {name!r} is given twice")
        try:
            curves[name] = Bound(*map(nonnegative_float, values))
        except argparse.ArgumentTypeError as error:
            raise CDNError(f"--curve {name}: bias and variance: {error}") from None
        if not any(curves[name]):
            raise CDNError(f"--curve {name}: expected a bias or a variance above 0, got two zeros")
    return curves


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("cdn.experiments.bounds", __doc__)
    parser.set_defaults(experiment="bounds")
    shown = ", ".join(f"{name} {b:g} {v:g}" for name, (b, v) in DEFAULT.items())
    text = f"a bound to draw, may be given several times (default: {shown})"
    parser.add_argument("--curve", nargs=3, action="append", metavar=("NAME", "BIAS", "VARIANCE"), help=text)
    text = "numbers of training images to draw (default: 10 100000)"
    metavar = ("LOW", "HIGH")
    parser.add_argument("--images", nargs=2, type=positive_float, metavar=metavar, default=(10.0, 1e5), help=text)
    add_out(parser, "runs/bounds", Path("runs/bounds"))
    return parser


if __name__ == "__main__":
    run_command(main)
