"""Draw how many images a model still classifies rightly under attacks of growing strength, in L-infinity and in L2.

    python -m cdn.experiments.robustness runs/cifar10 --against runs/resnet runs/jem --limit 500

Attacks the logits of every run on the same test images, without noise, within balls of rising radius and within [0, 1].
An image counts as robust at a radius if none of the attacks, restarts and targets has fooled the model there or at a
smaller one. Then looks for signs that gradients are masked, which would make a model look more robust than it is.
Prints tables, and writes report.json and picture.png (after figure 4 of arXiv 2410.03505) into RUN/robustness.
"""

import argparse
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn

from cdn.cli.arguments import positive_float, positive_int, run_command, whole_number
from cdn.errors import CDNError
from cdn.experiments.runner import Experiment, Results, add_against, make_parser, text_table
from cdn.methods.attacks import ATTACKS, NORMS, masking_checks, sweep
from cdn.model.modes import evaluating
from cdn.pictures.style import COLORS, named, tidy

TITLES = dict(linf="L-infinity", l2="L2")
# Radii are given and shown in these parts of the range from black to white.
UNITS = dict(linf=255, l2=1)
DEFAULT_RADII = dict(linf=(1, 2, 4, 8, 16, 32, 64), l2=(0.1, 0.25, 0.5, 1, 2, 4))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    experiment = Experiment(_parse(argv))
    args = experiment.args
    runs = experiment.classifiers()
    x, labels = experiment.test_images()
    results: Results = dict(images=len(x), runs={})
    for name, run in runs.items():
        with evaluating(run.model, args.precision):
            try:
                results["runs"][name] = {norm: _measure(run.model, x, labels, norm, experiment) for norm in args.norms}
            except ValueError as error:
                raise CDNError(f"{run.path}: {error}") from None
    for norm in args.norms:
        print(curve_table(results, norm), end="\n\n")
    if args.checks:
        print(verdict_table(results, args.norms), end="\n\n")
    experiment.save_figure(picture(results, args.norms, _describe(args)))
    experiment.write(results)


def curve_table(results: Results, norm: str) -> str:
    """Return the robust accuracy of every run at every radius in one norm, as text."""
    first, *_ = results["runs"].values()
    unit = "/255" if UNITS[norm] == 255 else ""
    header = [f"robust accuracy, {TITLES[norm]} radius", "0", *(f"{radius:g}{unit}" for radius in first[norm]["radii"])]
    return text_table(
        header,
        [
            [name, *(f"{value:.1%}" for value in [run[norm]["clean"], *run[norm]["robust"]])]
            for name, run in results["runs"].items()
        ],
    )


def verdict_table(results: Results, norms: Sequence[str]) -> str:
    """Return what the checks for gradient masking found, as text; a model that is always wrong has none."""
    rows = [
        [
            check["check"],
            TITLES[norm],
            f"{run[norm]['check_radius']:g}",
            name,
            "yes" if check["passed"] else "NO",
            check["measured"],
        ]
        for norm in norms
        for name, run in results["runs"].items()
        for check in run[norm]["checks"]
    ]
    return text_table(["no sign of masked gradients if", "norm", "radius", "run", "holds", "measured"], rows)


def picture(results: Results, norms: Sequence[str], title: str) -> Figure:
    """Draw robust accuracy against radius: a panel per norm, a line per run, with a standard error on either side."""
    figure = Figure(figsize=(4.8 * len(norms), 3.8), layout="constrained")
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms):
        for number, (name, run) in enumerate(results["runs"].items()):
            radius = [0, *run[norm]["radii"]]
            accuracy = torch.tensor([run[norm]["clean"], *run[norm]["robust"]])
            error = (accuracy * (1 - accuracy) / results["images"]).sqrt()
            color = COLORS[number % len(COLORS)]
            axes.plot(radius, accuracy, "o-", color=color, markersize=3.5, linewidth=1.5, label=named(name))
            axes.fill_between(radius, accuracy - error, accuracy + error, color=color, alpha=0.15, linewidth=0)
        unit = "grey levels of 255" if UNITS[norm] == 255 else "white is 1"
        tidy(axes, title=TITLES[norm], xlabel=f"radius ({unit})", ylabel="robust accuracy")
        axes.set(xlim=(0, _end([run[norm] for run in results["runs"].values()])), ylim=(0, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title}, {results['images']} images", fontsize=10)
    return figure


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("robustness", __doc__, limit=100)
    add_against(parser)
    group = parser.add_argument_group("attack")
    group.add_argument(
        "--attack",
        nargs="+",
        choices=ATTACKS,
        default=["apgd-ce", "apgd-dlr"],
        metavar="NAME",
        help=f"attacks to try in turn, of {', '.join(ATTACKS)} (default: apgd-ce apgd-dlr)",
    )
    group.add_argument(
        "--steps", metavar="N", type=positive_int, default=50, help="steps of each attack (default: %(default)s)"
    )
    group.add_argument(
        "--restarts",
        metavar="N",
        type=positive_int,
        default=1,
        help="random starts of each attack (default: %(default)s)",
    )
    group.add_argument(
        "--targeted",
        metavar="K",
        type=whole_number,
        default=0,
        help="aim at each of the K most likely wrong classes in turn (default: 0, at none)",
    )
    group.add_argument(
        "--norms",
        nargs="+",
        choices=NORMS,
        default=list(NORMS),
        metavar="NORM",
        help="linf, l2 or both (default: both)",
    )
    group.add_argument(
        "--radii-linf",
        nargs="+",
        type=positive_float,
        default=DEFAULT_RADII["linf"],
        metavar="R",
        help="in grey levels of 255 (default: 1 2 4 8 16 32 64)",
    )
    group.add_argument(
        "--radii-l2",
        nargs="+",
        type=positive_float,
        default=DEFAULT_RADII["l2"],
        metavar="R",
        help="in units where white is 1, over all values of an image (default: 0.1 0.25 0.5 1 2 4)",
    )
    group.add_argument(
        "--checks",
        metavar="N",
        type=whole_number,
        default=50,
        help="look for masked gradients on the first N images that are classified rightly, at the "
        "radius that about half of all withstand; 0 for not at all (default: %(default)s)",
    )
    return parser.parse_args(argv)


def _measure(model: nn.Module, x: Tensor, labels: Tensor, norm: str, experiment: Experiment) -> Results:
    """Return what JSON should hold of one run in one norm."""
    args, unit = experiment.args, UNITS[norm]
    radii = sorted(args.radii_linf if norm == "linf" else args.radii_l2)
    options = dict(steps=args.steps, seed=args.seed, batch_size=args.batch_size)
    curve = sweep(
        model,
        x,
        labels,
        norm,
        [radius / unit for radius in radii],
        args.attack,
        restarts=args.restarts,
        targeted=args.targeted,
        progress=experiment.progress,
        **options,
    )
    result: Results = dict(radii=radii, clean=curve.clean_accuracy, robust=curve.robust_accuracy, checks=[])
    right = curve.broken_at.nonzero()[: args.checks, 0]
    if len(right):
        _, radius = min(
            (abs(accuracy - curve.clean_accuracy / 2), radius) for accuracy, radius in zip(curve.robust_accuracy, radii)
        )
        verdicts = masking_checks(
            model, x[right], labels[right], norm, radius / unit, queries=10 * args.steps, **options
        )
        result |= dict(check_radius=radius, checks=[verdict._asdict() for verdict in verdicts])
    return result


def _describe(args: argparse.Namespace) -> str:
    starts = f", {args.restarts} restarts" if args.restarts > 1 else ""
    aim = f", aimed at {args.targeted} classes" if args.targeted else ""
    return f"{' + '.join(args.attack)}, {args.steps} steps{starts}{aim}"


def _end(curves: Sequence[Results]) -> float:
    """Return where the axis of radii may end: at the first where nothing is left of any curve, if there is one."""
    radii = curves[0]["radii"]
    gone = [radius for k, radius in enumerate(radii) if not any(curve["robust"][k] for curve in curves)]
    return gone[0] if gone else radii[-1]


if __name__ == "__main__":
    run_command(main)
