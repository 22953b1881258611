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
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cdn.cli.arguments import nonnegative_float, positive_float, run_command
from cdn.errors import CDNError
from cdn.experiments.runner import save_figure, text_table, write_report
from cdn.methods.learning_bounds import Bound, crossing
from cdn.pictures.style import BLACK, COLORS, named, tidy
from cdn.run_folder.weights import make_folder

# Two bounds by name, the n at which they cross, and the error there.
Crossing = tuple[str, str, float, float]
DEFAULT = {"generative": Bound(0.1, 2.0), "discriminative": Bound(0.05, 20.0)}


def crossings(curves: dict[str, Bound]) -> list[Crossing]:
    """Return (name, other, n, error) of every crossing among named bounds, ordered by n."""
    found = [(a, b, crossing(curves[a], curves[b])) for a, b in combinations(curves, 2)]
    return sorted(((a, b, n, curves[a](n)) for a, b, n in found if n is not None), key=lambda row: row[2])


def draw(curves: dict[str, Bound], points: Iterable[Crossing], low: float, high: float) -> Figure:
    """Draw named bounds against n from low to high, with the crossings in between marked."""
    n = np.geomspace(low, high, 400)
    figure = Figure(figsize=(6.2, 4), layout="constrained")
    axes = figure.subplots()
    for color, (name, bound) in zip(np.resize(COLORS, len(curves)), curves.items()):
        axes.plot(n, bound(n), color=color, label=named(f"{name}: {bound.bias:g} + {bound.variance:g}/n"))
        axes.axhline(bound.bias, color=color, linewidth=0.8, linestyle=":")
    for _, _, crossed, error in points:
        if low <= crossed <= high:
            axes.plot(crossed, error, "o", color=BLACK, markersize=5, zorder=3)
            axes.annotate(f"n* = {crossed:.4g}", (crossed, error), (7, 7), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    tidy(axes, xlabel="training images n", ylabel="bound on the error", title="b + v/n, and b (dotted)")
    axes.legend(frameon=False, fontsize=8)
    return figure


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
    print(text_table(["bound", "bias b", "variance v"], [[name, *bound] for name, bound in curves.items()]))
    print()
    if points:
        print(text_table(["equal for", "at n*", "error there"], [[f"{a}, {b}", n, error] for a, b, n, error in points]))
    else:
        print("no two of them cross at any n > 0")
    save_figure(draw(curves, points, low, high), args.out / "picture.png")
    write_report(
        args.out,
        args,
        dict(
            bounds={name: bound._asdict() for name, bound in curves.items()},
            crossings=[dict(first=a, second=b, n=n, error=error) for a, b, n, error in points],
        ),
        start,
    )


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
    parser = argparse.ArgumentParser(
        prog="python -m cdn.experiments.bounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(experiment="bounds")
    parser.add_argument(
        "--curve",
        nargs=3,
        action="append",
        metavar=("NAME", "BIAS", "VARIANCE"),
        help="a bound to draw, may be given several times (default: "
        + ", ".join(f"{name} {b:g} {v:g}" for name, (b, v) in DEFAULT.items())
        + ")",
    )
    parser.add_argument(
        "--images",
        nargs=2,
        type=positive_float,
        metavar=("LOW", "HIGH"),
        default=(10.0, 1e5),
        help="numbers of training images to draw (default: 10 100000)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("runs/bounds"),
        help="where report.json and picture.png go (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
