"""Certify the smoothed version of trained classifiers on test images.

Randomized smoothing (Cohen, Rosenfeld & Kolter 2019): a majority vote under Gaussian noise, and the L2 radius within
which no perturbation changes it, each right with probability 1 - alpha. Prints and draws certified accuracy against
radius, and writes report.json. Every certified image is a row of certificates.jsonl at once: run again, the command
goes on where it was interrupted, and skips what it finds there of the same weights, data and settings.

Examples:
  python -m cdn.certify runs/cifar10 --against runs/resnet-plain runs/resnet-noise --n 10000 --precision bf16
  torchrun --nproc-per-node 2 -m -- cdn.certify runs/cifar10 --n 10000   # the same, an image at a time on each process
"""

import hashlib
import time
from itertools import chain
from typing import Any

from torch import Tensor
from tqdm import tqdm

from cdn.cli.arguments import Option, noise_level, nonnegative_float, positive_int, probability
from cdn.experiments.runner import Experiment, Findings, Session
from cdn.files import Results
from cdn.methods import smoothing
from cdn.methods.smoothing.certificate import certified_accuracy
from cdn.model.inputs import sigma_text
from cdn.pictures.robust_accuracy import certified_figure, certified_table
from cdn.processes import ALONE, Processes
from cdn.run_folder.journal import Journal, Row
from cdn.run_folder.names import WEIGHTS
from cdn.run_folder.opened import Run

RADII = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3)


def measure(session: Session) -> Findings:
    """Certify the images for every run at every noise level."""
    args, runs, first = session.args, session.classifiers(), session.processes.first
    journal = Journal(session.out / "certificates.jsonl") if first else None
    images, labels = session.test_images()
    results = []
    with session.bar(total=len(runs) * len(args.sigmas) * len(images), unit="image") as bar:
        for name, run in runs.items():
            for sigma in args.sigmas:
                bar.set_description(f"{name}, sigma {sigma_text(sigma)}")
                how = dict(n0=args.n0, n=args.n, alpha=args.alpha, seed=args.seed, precision=args.precision)
                rows = certify_images(run, images, journal, sigma, args.batch_size, bar, session.processes, **how)
                results.append(dict(run=name, **summarize(sigma, rows, labels, args.n, args.alpha, args.radii)))
    about = f"{len(images)} test images of {session.run.dataset.name}, n = {args.n}"
    heading = f"{about}, n0 = {args.n0}, alpha = {args.alpha:g}: certified accuracy (%) at L2 radii"
    figure = lambda: certified_figure(results, f"Certified accuracy, {about}, α = {args.alpha:g}")
    kept = [{key: value for key, value in result.items() if key not in OF_IMAGES} for result in results]
    return Findings(kept, (heading, certified_table(results)), {"picture.png": figure})


# What is drawn, and not written: of every image.
OF_IMAGES = ("labels", "predicted", "radii")


def certify_images(
    run: Run,
    images: Tensor,
    journal: Journal | None,
    sigma: float,
    batch_size: int,
    bar: tqdm,
    processes: Processes = ALONE,
    **how: Any,
) -> list[Row]:
    """Return a row of the journal for each image, certifying those that it lacks.

    Args:
        run: whose model to certify.
        images: [N, C, H, W], the first test images.
        journal: where certificates are; that of the first process, None for the others.
        sigma: noise level.
        batch_size: samples per forward.
        bar: a tqdm bar to advance by the number of images.
        processes: those that take turns: each certifies the next image that is missing, and waits for the others.
        how: n0, n, alpha, seed and precision, of :func:`cdn.certify`.
    """
    weights = hashlib.sha256((run.path / WEIGHTS).read_bytes()).hexdigest()[:16]
    settings = dict(weights=weights, data=run.dataset.name, sigma=sigma, **how)
    known = processes.gather(journal.rows if journal else [])[0]
    rows = {row["image"]: row for row in known if row.get("settings") == settings and row["image"] < len(images)}
    missing = [index for index in range(len(images)) if index not in rows]
    bar.update(len(rows))
    for turn in range(0, len(missing), processes.count):
        own = missing[turn:][processes.rank : processes.rank + 1]  # none is left for some in the last turn
        for row in chain.from_iterable(processes.gather([_certify(run, images, k, settings, batch_size) for k in own])):
            rows[row["image"]] = row
            if journal:
                journal.append(row)
            bar.update()
    return [rows[index] for index in range(len(images))]


def _certify(run: Run, images: Tensor, index: int, settings: Results, batch_size: int) -> Row:
    """Certify one of the images, by its index, and return its row."""
    start = time.perf_counter()
    how = {name: settings[name] for name in ("sigma", "n0", "n", "alpha", "seed", "precision")}
    image = images[index : index + 1]
    found = smoothing.certify(run.model, image, batch_size=batch_size, first=index, **how)
    return dict(
        image=index,
        **{name: field.item() for name, field in zip(found._fields, found)},
        seconds=round(time.perf_counter() - start, 4),
        settings=settings,
    )


def summarize(sigma: float, rows: list[Row], labels: Tensor, n: int, alpha: float, at: tuple[float, ...]) -> Results:
    """Return what one run shows at one noise level, at some radii."""
    truth = labels.tolist()
    predicted, radii, draws, seconds = ([row[key] for row in rows] for key in ("label", "radius", "draws", "seconds"))
    shares = certified_accuracy(truth, predicted, radii, at)
    return dict(
        sigma=sigma,
        images=len(rows),
        largest_radius=smoothing.largest_radius(sigma, n, alpha),
        abstained=predicted.count(smoothing.ABSTAIN) / len(rows),
        certified_accuracy={f"{radius:g}": float(share) for radius, share in zip(at, shares)},
        average_radius=sum(r for r, a, b in zip(radii, predicted, truth) if a == b) / len(rows),
        samples_per_second=sum(draws) / sum(seconds),
        seconds=round(sum(seconds), 1),
        labels=truth,
        predicted=predicted,
        radii=radii,
    )


main = Experiment(
    "certify",
    __doc__,
    measure,
    module="cdn.certify",
    against=True,
    options={
        "": (
            Option("--sigmas", noise_level, [0.12, 0.25, 0.5, 1.0], "noise levels, as 0.1 or 25/255", many=True),
            Option("--n0", positive_int, 50, "draws that guess the class"),
            Option("--n", positive_int, 500, "draws that bound its probability; papers use 100000"),
            Option("--alpha", probability, 0.001, "probability that a certificate is wrong"),
            Option("--radii", nonnegative_float, RADII, "columns of the table", many=True),
        )
    },
)
