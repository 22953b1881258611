"""Out-of-distribution detection: how well a model tells the test images of its data from others.

    python -m cdn.experiments.outliers runs/cifar10 --outliers CIFAR-100=data/cifar100

Four detectors, each greater for what looks more like the training: the log-density log p(y), its typicality, the norm
of the score and the maximum softmax (cdn/methods/detection/detectors.py). Outliers are noise, constant images,
distorted test images ("mirrored" ones are a control: photographs stay photographs), letters where images have no color,
and the folders given with --outliers. All is measured on images as they are and again with Gaussian noise of --sigma on
inliers and outliers alike, as the network models the densities of noisy images. Half of the images taken are inliers,
the other half is what distorted outliers are made of.

A classifier without a density is measured by its maximum softmax alone. The figures hold for these outliers only.
"""

import argparse
from collections.abc import Collection, Sequence

import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve
from torch import Tensor
from tqdm import tqdm

from cdn.cli.arguments import run_command
from cdn.commands.denoise import parse_sigma
from cdn.errors import CDNError
from cdn.evaluation.evaluate import EVALUATION
from cdn.experiments.runner import Experiment, Results, make_parser, text_table
from cdn.methods.detection.detectors import Evidence, gather, rate, separation
from cdn.methods.detection.outlier_sets import read_outliers, synthetic_outliers
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import BLUE, GREY, SEQUENCE, named, tidy
from cdn_kernels import Noise, sample_noise

FIGURES = {"auroc": "AUROC", "aupr_in": "AUPR in", "aupr_out": "AUPR out", "fpr95": "FPR95"}
BINS = 60
INLIERS = "inliers"
# Images by the name of the set; ratings [N] by noise level, set and detector.
Sets = dict[str, Tensor]
Ratings = dict[str, dict[str, dict[str, Tensor]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("outliers", __doc__, limit=1000)
    add_outliers(parser)
    parser.add_argument(
        "--sigma",
        metavar="S",
        type=parse_sigma,
        default=25 / 255,
        help="noise level of the second measurement, for images in [0, 1] (default: 25/255)",
    )
    args = parser.parse_args(argv)
    experiment = Experiment(args)
    run = experiment.run
    if not run.has_density and not run.has_classes:
        raise CDNError(f"{args.run}: expected a model with a density or with classes, got a direct denoiser")
    inliers, sets, training = collect(experiment)
    levels = {"clean": 0.0, f"σ = {255 * args.sigma:.3g}/255": args.sigma}
    with tqdm(total=len(levels) * (len(sets) + 2), unit="set", leave=False, disable=not experiment.progress) as bar:
        ratings = {
            name: rate_sets(experiment, {INLIERS: inliers} | sets, training, sigma, bar)
            for name, sigma in levels.items()
        }
    results = {
        level: {
            name: {
                detector: separation(rated[INLIERS][detector], values)._asdict()
                for detector, values in detectors.items()
            }
            for name, detectors in rated.items()
            if name != INLIERS
        }
        for level, rated in ratings.items()
    }
    fewest = min(map(len, sets.values()))
    print(
        f"{args.run}: {len(inliers)} test images of {run.dataset.name} against {fewest} or more outliers of each kind"
    )
    print(overview(results))
    print(details(results))
    experiment.save_figure(
        draw_grid(
            [[(INLIERS, inliers[:6], ())], [(name.replace(" ", "\n"), images[:6], ()) for name, images in sets.items()]]
        )
    )
    experiment.save_figure(draw_ratings(ratings), "ratings.png")
    experiment.save_figure(draw_roc(ratings, results), "roc.png")
    experiment.write(
        dict(
            inliers=len(inliers),
            training=len(training),
            separation=results,
            outliers={name: len(images) for name, images in sets.items()},
        )
    )


def collect(experiment: Experiment) -> tuple[Tensor, Sets, Tensor]:
    """Return inliers [N, C, H, W], a dict of sets of outliers, and training images, on the device."""
    args, dataset = experiment.args, experiment.run.dataset
    images, _ = experiment.test_images()
    if len(images) < 4:
        raise CDNError(f"--limit: expected at least 4 test images, two of them inliers, got {len(images)}")
    inliers, others = images[::2], images[1::2]
    synthetic = synthetic_outliers(others, args.seed)
    sets = read_sets(experiment, (INLIERS, *synthetic), len(inliers)) | synthetic
    training, _ = experiment.spread_images(dataset.train, len(inliers))
    return inliers, sets, training


def add_outliers(parser: argparse.ArgumentParser) -> None:
    """Add the option --outliers, which :func:`read_sets` reads."""
    parser.add_argument(
        "--outliers",
        metavar="NAME=FOLDER",
        type=_named_folder,
        nargs="+",
        default=[],
        help="further sets: folders of image files, or of strips of images on top of each other",
    )


def read_sets(experiment: Experiment, taken: Collection[str], limit: int) -> Sets:
    """Return the sets of --outliers by name, on the device.

    Args:
        experiment: a :class:`cdn.experiments.runner.Experiment`.
        taken: names of other sets.
        limit: how many images of a set to read at most.

    Raises:
        CDNError: a name that is taken, or a set that cannot be read.
    """
    sets: Sets = {}
    for given in experiment.args.outliers:
        name, _, folder = given.partition("=")
        if name in (*taken, *sets):
            raise CDNError(f"--outliers {given}: expected a name of its own, as {name!r} is taken")
        sets[name] = read_outliers(folder, experiment.run.dataset.shape, limit).to(experiment.device)
    return sets


def rate_sets(
    experiment: Experiment, sets: Sets, training: Tensor, sigma: float, bar: tqdm
) -> dict[str, dict[str, Tensor]]:
    """Return, for each set of images, a dict from detectors to ratings [N], at one noise level."""
    args, run = experiment.args, experiment.run

    def evidence(number: int, images: Tensor) -> Evidence:
        # A key of its own for each set: pairs of images must not share their noise.
        y, _ = sample_noise(images, sigma, Noise(args.seed, EVALUATION + number))
        found = gather(run.model, y, density=run.has_density, classes=run.has_classes, batch_size=args.batch_size)
        bar.update()
        return found

    with evaluating(run.model, args.precision):
        reference = evidence(0, training)
        return {
            name: rate(evidence(number, images), reference) for number, (name, images) in enumerate(sets.items(), 1)
        }


def overview(results: Results) -> str:
    """Return a table of AUROC: a row per set, a column per noise level and detector."""
    first = next(iter(results.values()))
    names = list(next(iter(first.values())))
    header = ["AUROC", *(f"{detector}, {level}" for level in results for detector in names)]
    return text_table(
        header,
        [
            [name, *(f"{results[level][name][detector]['auroc']:.3f}" for level in results for detector in names)]
            for name in first
        ],
    )


def details(results: Results) -> str:
    """Return a table of all figures: a row per set and detector, a column per noise level and figure."""
    header = ["outliers", "detector", *(f"{figure}, {level}" for level in results for figure in FIGURES.values())]
    first = next(iter(results.values()))
    return text_table(
        header,
        [
            [name, detector, *(f"{results[level][name][detector][key]:.3f}" for level in results for key in FIGURES)]
            for name in first
            for detector in first[name]
        ],
    )


def draw_ratings(ratings: Ratings) -> Figure:
    """Draw, per noise level and detector, the histogram of each set of outliers before that of the inliers."""
    first = next(iter(ratings.values()))
    sets, detectors = [name for name in first if name != INLIERS], list(first[INLIERS])
    figure = Figure(
        figsize=(1.4 + 2.6 * len(detectors), 1 + len(ratings) * (0.5 + 0.27 * len(sets))), layout="constrained"
    )
    panels = figure.subplots(len(ratings), len(detectors), squeeze=False, sharey=True)
    for row, (level, rated) in zip(panels, ratings.items()):
        for axes, detector in zip(row, detectors):
            inliers = rated[INLIERS][detector]
            edges = _edges(inliers, torch.cat([values[detector] for values in rated.values()]))
            for position, name in enumerate(sets):
                for values, color, alpha in ((inliers, GREY, 0.6), (rated[name][detector], BLUE, 0.7)):
                    heights = torch.histogram(values.clamp(edges[0], edges[-1]), edges).hist
                    axes.stairs(
                        (heights / heights.max() * 0.85 - position).numpy(),
                        edges.numpy(),
                        baseline=-position,
                        fill=True,
                        color=color,
                        alpha=alpha,
                    )
            tidy(
                axes,
                title=f"{detector}, {level}",
                yticks=[-i for i in range(len(sets))],
                yticklabels=sets,
                xlim=(float(edges[0]), float(edges[-1])),
            )
            axes.grid(visible=False)
            axes.locator_params(axis="x", nbins=5)
            axes.tick_params(axis="x", labelsize=6.5)
    figure.supxlabel(
        "rating (grey: inliers, blue: outliers; what is beyond an end is counted in its last bin)", fontsize=9
    )
    return figure


def draw_roc(ratings: Ratings, results: Results) -> Figure:
    """Draw a panel per set of outliers: a curve per detector, solid for clean images and dashed for noisy ones."""
    first = next(iter(results.values()))
    sets, detectors = list(first), list(next(iter(first.values())))
    columns = min(6, len(sets))
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(2.1 * columns, 0.7 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, name in zip(panels, sets):
        for (level, rated), style in zip(ratings.items(), ("-", "--")):
            for detector, color in zip(detectors, SEQUENCE[1:]):
                inliers, outliers = rated[INLIERS][detector], rated[name][detector]
                inside = torch.cat([torch.ones(len(inliers)), torch.zeros(len(outliers))])
                false, true, _ = roc_curve(inside, torch.cat([inliers, outliers]))
                axes.plot(false, true, style, color=color, linewidth=1.3, label=named(f"{detector}, {level}"))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        tidy(axes, title=name)
    for axes in panels[: len(sets)][-columns:]:
        axes.set_xlabel("outliers that pass", fontsize=8)
        axes.tick_params(labelbottom=True)
    for axes in panels[::columns]:
        axes.set_ylabel("inliers that pass", fontsize=8)
    for axes in panels[len(sets) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(detectors), fontsize=8, frameon=False)
    return figure


def _edges(inliers: Tensor, ratings: Tensor) -> Tensor:
    """Return the edges of bins that show the inliers, and on either side as much again where there is something."""
    low, high = torch.quantile(inliers, torch.tensor([0.005, 0.995], dtype=inliers.dtype)).tolist()
    margin = max(high - low, 1e-9)
    return torch.linspace(
        max(low - margin, float(ratings.min())),
        min(high + margin, float(ratings.max())) + 1e-9,
        BINS + 1,
        dtype=inliers.dtype,
    )


def _named_folder(text: str) -> str:
    """Parse NAME=FOLDER, both not empty, and return it as it is."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {text!r}")
    return text


if __name__ == "__main__":
    run_command(main)
