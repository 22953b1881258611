"""Certify the smoothed version of trained classifiers on test images.

Randomized smoothing (Cohen, Rosenfeld & Kolter 2019): a majority vote under Gaussian noise, and the L2 radius within
which no perturbation changes it, each right with probability 1 - alpha. Prints and draws certified accuracy against
radius, and writes report.json. Every certified image is a row of certificates.jsonl at once: run again, the command
goes on where it was interrupted, and skips what it finds there of the same weights, data and settings.

Example:
  python -m cdn.certify runs/cifar10 --against runs/resnet-plain runs/resnet-noise --n 10000 --precision bf16
"""

import argparse
import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from cdn.cli.arguments import noise_level, nonnegative_float, positive_int, probability
from cdn.experiments.runner import Experiment, add_against, make_parser, text_table
from cdn.methods import smoothing as certification
from cdn.methods.smoothing.certified_accuracy import certified_accuracy, curves_figure
from cdn.run_folder.journal import Journal, Row
from cdn.run_folder.weights import WEIGHTS

if TYPE_CHECKING:
    from cdn.run_folder.opened import Run

RADII = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    experiment = Experiment(args)
    runs = experiment.classifiers()
    journal = Journal(experiment.out / "certificates.jsonl")
    images, labels = experiment.test_images()
    results = []
    with tqdm(
        total=len(runs) * len(args.sigmas) * len(images), unit="image", leave=False, disable=not experiment.progress
    ) as bar:
        for name, run in runs.items():
            for sigma in args.sigmas:
                bar.set_description(f"{name}, sigma {sigma:g}")
                rows = certify_images(run, images, journal, sigma, args, bar)
                results.append(_result(name, sigma, rows, labels, args))
    about = f"{len(images)} test images of {experiment.run.dataset.name}, n = {args.n}"
    print(f"{about}, n0 = {args.n0}, alpha = {args.alpha:g}: certified accuracy (%) at L2 radii")
    print(text_table(*_table(results)))
    experiment.save_figure(curves_figure(results, f"Certified accuracy, {about}, α = {args.alpha:g}"))
    experiment.write(
        [
            {key: value for key, value in result.items() if key not in ("labels", "predicted", "radii")}
            for result in results
        ]
    )


def certify_images(
    run: "Run", images: Tensor, journal: Journal, sigma: float, args: argparse.Namespace, bar: tqdm
) -> list[Row]:
    """Return a row of the journal for each image, certifying those that it lacks.

    Args:
        run: a :class:`cdn.run_folder.opened.Run`.
        images: [N, C, H, W], the first test images.
        journal: a :class:`cdn.run_folder.journal.Journal`.
        sigma: noise level.
        args: n0, n, alpha, seed, precision and batch_size.
        bar: a tqdm bar to advance by the number of images.
    """
    settings = dict(
        weights=hashlib.sha256((run.path / WEIGHTS).read_bytes()).hexdigest()[:16],
        data=run.dataset.name,
        sigma=sigma,
        n0=args.n0,
        n=args.n,
        alpha=args.alpha,
        seed=args.seed,
        precision=args.precision,
    )
    rows = {row["image"]: row for row in journal.rows if row.get("settings") == settings}
    for index, image in enumerate(images):
        if index not in rows:
            start = time.perf_counter()
            found = certification.certify(
                run.model,
                image[None],
                sigma,
                args.n0,
                args.n,
                args.alpha,
                batch_size=args.batch_size,
                seed=args.seed,
                first=index,
                precision=args.precision,
            )
            rows[index] = dict(
                image=index,
                **{name: field.item() for name, field in zip(found._fields, found)},
                seconds=round(time.perf_counter() - start, 4),
                settings=settings,
            )
            journal.append(rows[index])
        bar.update()
    return [rows[index] for index in range(len(images))]


def _result(name: str, sigma: float, rows: list[Row], labels: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Return what one run shows at one noise level."""
    truth = labels.tolist()
    predicted, radii, draws, seconds = ([row[key] for row in rows] for key in ("label", "radius", "draws", "seconds"))
    shares = certified_accuracy(truth, predicted, radii, args.radii)
    return dict(
        run=name,
        sigma=sigma,
        images=len(rows),
        largest_radius=certification.largest_radius(sigma, args.n, args.alpha),
        abstained=predicted.count(certification.ABSTAIN) / len(rows),
        certified_accuracy={f"{radius:g}": float(share) for radius, share in zip(args.radii, shares)},
        average_radius=sum(r for r, a, b in zip(radii, predicted, truth) if a == b) / len(rows),
        samples_per_second=sum(draws) / sum(seconds),
        seconds=round(sum(seconds), 1),
        labels=truth,
        predicted=predicted,
        radii=radii,
    )


def _table(results: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows; radii that no certificate could reach are shown as a dash."""
    radii = list(results[0]["certified_accuracy"])
    header = ["run", "sigma", *radii, "abstained", "mean radius", "samples/s", "seconds"]
    rows = [
        [
            r["run"],
            r["sigma"],
            *(
                f"{100 * share:.1f}" if float(radius) <= r["largest_radius"] else None
                for radius, share in r["certified_accuracy"].items()
            ),
            f"{100 * r['abstained']:.1f}",
            f"{r['average_radius']:.3f}",
            f"{r['samples_per_second']:.0f}",
            f"{r['seconds']:.0f}",
        ]
        for r in results
    ]
    return header, rows


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("certify", __doc__, limit=100)
    parser.prog = "python -m cdn.certify"
    add_against(parser)
    parser.add_argument(
        "--sigmas",
        metavar="S",
        type=noise_level,
        nargs="+",
        default=[0.12, 0.25, 0.5, 1.0],
        help="noise levels, for images in [0, 1] (default: 0.12 0.25 0.5 1)",
    )
    parser.add_argument(
        "--n0", metavar="N", type=positive_int, default=50, help="draws that guess the class (default: %(default)s)"
    )
    parser.add_argument(
        "--n",
        metavar="N",
        type=positive_int,
        default=500,
        help="draws that bound its probability; papers use 100000 (default: %(default)s)",
    )
    parser.add_argument(
        "--alpha",
        metavar="A",
        type=probability,
        default=0.001,
        help="probability that a certificate is wrong (default: %(default)s)",
    )
    parser.add_argument(
        "--radii",
        metavar="R",
        type=nonnegative_float,
        nargs="+",
        default=RADII,
        help=f"columns of the table (default: {' '.join(map(str, RADII))})",
    )
    return parser
