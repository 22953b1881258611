"""Ask how well a generator reconstructs images that it was not trained on, and what can tell these from others.

A variational autoencoder with a large latent is trained on images of the first classes of RUN's data. Then it
reconstructs test images of these classes and of all others, which it never saw, noise, distorted images and the folders
given with --outliers, by the latents that a search finds: freely ("free"), with the density N(0, I) on the latent
("prior"), and with a Gaussian fitted to the latents of training images ("fitted"). The network of RUN, which was
trained on all classes, is the arbiter: it rates by its log p how typical images and reconstructions are of the training
images used here, under noise of --sigma.

Prints tables of PSNR and of AUROC, the chance that a random image from inside is rated above one from outside: 0.5
says nothing. Writes report.json, picture.png and reconstructions.png into RUN/out_of_domain.

Example:
  python -m cdn.experiments.out_of_domain runs/cifar10 --outliers CIFAR-100=data/cifar100 --latents 256 --limit 200
"""

import argparse
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from cdn.cli.arguments import positive_float, positive_int, run_command
from cdn.commands.denoise import parse_sigma
from cdn.errors import CDNError
from cdn.evaluation.evaluate import EVALUATION
from cdn.evaluation.metrics import psnr
from cdn.experiments.outliers import add_outliers, read_sets
from cdn.experiments.runner import Experiment, Results, make_parser, text_table
from cdn.methods.detection.detectors import separation
from cdn.methods.detection.outlier_sets import synthetic_outliers
from cdn.methods.synthesis import ClassGenerators, fit
from cdn.methods.synthesis.inference import Generators
from cdn.methods.synthesis.outside import Arbiter, StandardLatents, reconstruct, weakest
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import GREY, SEQUENCE, named, tidy
from cdn_kernels import Noise

INSIDE, OTHERS, TRAINING = "inside", "other classes", "training"
SYNTHETIC = ("Gaussian noise", "uniform noise", "inverted", "shuffled pixels")
FREE, PRIOR, FITTED = "free", "prior", "fitted"
ERROR, ENERGY, GIVEN, MADE, BOTH = "error", "energy", "log p, image", "log p, made", "error and log p"
SHOWN = 4
# Images by the name of the set; by search and set what was made of them and its energies; ratings by search, set and
# detector.
Sets = dict[str, Tensor]
Made = dict[str, dict[str, tuple[Tensor, Tensor]]]
Ratings = dict[str, dict[str, dict[str, Tensor]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    experiment = Experiment(args)
    run = experiment.run
    experiment.require_density()
    count = args.inside or max(len(run.dataset.classes) // 2, 1)
    if count >= len(run.dataset.classes):
        raise CDNError(
            f"--inside: expected fewer than the {len(run.dataset.classes)} classes of {run.dataset.name}, "
            f"so that there are others, got {count}"
        )
    training, sets = collect(experiment, count)
    generators = ClassGenerators(
        1, run.dataset.shape, latents=args.latents, width=args.width, sigma=args.pixel_sigma, seed=args.seed
    ).to(experiment.device)
    one_class = torch.zeros(len(training), dtype=torch.int64, device=experiment.device)
    fit(
        generators,
        training,
        one_class,
        steps=args.train_steps,
        batch_size=args.train_batch,
        seed=args.seed,
        progress=experiment.progress,
    )
    searches: dict[str, tuple[Generators, float]] = {
        FREE: (generators, args.free),
        PRIOR: (generators, args.strength),
        FITTED: (StandardLatents(generators, training, one_class), args.strength),
    }
    made = {name: reconstruct_sets(experiment, sets, *search) for name, search in searches.items()}
    with evaluating(run.model, args.precision):
        ratings = rate_sets(experiment, sets, made)
    results = summarize(sets, made, ratings)
    sigma = float(generators.sigma.detach())
    print(
        f"a generator of {args.latents} latents, trained on {len(training)} images of {count} classes of "
        f"{run.dataset.name}; {len(sets[INSIDE])} images inside, pixel deviation {sigma:.3f}"
    )
    print(error_table(results), end="\n\n")
    print(detection_table(results))
    experiment.save_figure(picture(results))
    experiment.save_figure(draw_reconstructions(sets, made), "reconstructions.png")
    experiment.write(dict(training=len(training), sigma=sigma, **results))


def collect(experiment: Experiment, count: int) -> tuple[Tensor, Sets]:
    """Return training images of the first classes, and a dict of sets of images, some of these first, on the device."""
    args, dataset = experiment.args, experiment.run.dataset
    training, labels = experiment.spread_images(dataset.train, args.train_images * len(dataset.classes) // count)
    training = training[labels < count]
    if len(training) < 2:
        raise CDNError(f"--train-images: expected at least two of the first {count} classes, got {len(training)}")
    images, classes = experiment.images(dataset.test, None)
    inside, others = images[classes < count][: args.limit], images[classes >= count][: args.limit]
    synthetic = synthetic_outliers(inside, args.seed)
    some = torch.linspace(0, len(training) - 1, min(len(training), args.limit)).long()
    sets = {TRAINING: training[some], INSIDE: inside, OTHERS: others} | {name: synthetic[name] for name in SYNTHETIC}
    return training, sets | read_sets(experiment, sets, args.limit)


def reconstruct_sets(
    experiment: Experiment, sets: Sets, generators: Generators, strength: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return for each set (reconstructions [N, C, H, W], energies [N])."""
    args = experiment.args
    with tqdm(sets.items(), unit="set", leave=False, disable=not experiment.progress) as bar:
        return {
            name: reconstruct(
                generators,
                images,
                strength,
                steps=args.steps,
                starts=args.starts,
                rate=args.rate,
                seed=args.seed,
                batch_size=args.batch_size,
            )
            for name, images in bar
        }


def rate_sets(experiment: Experiment, sets: Sets, made: Made) -> Ratings:
    """Return for each search and set a dict from detectors to ratings [N], greater for what looks like the training."""
    args = experiment.args
    key = lambda number: Noise(args.seed, EVALUATION + number)
    arbiter = Arbiter(experiment.model, sets[TRAINING], args.sigma, key(0), args.batch_size)
    given = {name: arbiter(images, key(number)) for number, (name, images) in enumerate(sets.items(), 1)}
    ratings = {
        search: {
            name: {
                ERROR: psnr(images, found[name][0]),
                ENERGY: -found[name][1].double(),
                GIVEN: given[name],
                MADE: arbiter(found[name][0], key(number)),
            }
            for number, (name, images) in enumerate(sets.items(), 1)
        }
        for search, found in made.items()
    }
    for rated in ratings.values():
        known = rated[TRAINING]
        for found in rated.values():
            found[BOTH] = weakest([found[ERROR], found[GIVEN]], [known[ERROR], known[GIVEN]])
    return ratings


def summarize(sets: Sets, made: Made, ratings: Ratings) -> Results:
    """Return what JSON should hold: by search and set, PSNR of reconstructions and AUROC of every detector."""
    results: Results = {}
    for search, reconstructed in made.items():
        results[search] = {}
        for name, images in sets.items():
            found: Results = dict(
                images=len(images),
                psnr=float(psnr(images, reconstructed[name][0]).mean()),
                error=float((images - reconstructed[name][0]).square().flatten(1).sum(1).sqrt().mean()),
            )
            if name not in (INSIDE, TRAINING):
                found["auroc"] = {
                    detector: separation(ratings[search][INSIDE][detector], values).auroc
                    for detector, values in ratings[search][name].items()
                }
            results[search][name] = found
    return dict(searches=results)


def error_table(results: Results) -> str:
    """Return how well each set is reconstructed by each search, as text."""
    searches = results["searches"]
    return text_table(
        ["PSNR of reconstructions (dB)", *searches],
        [[name, *(f"{searches[search][name]['psnr']:.1f}" for search in searches)] for name in searches[FREE]],
    )


def detection_table(results: Results) -> str:
    """Return the AUROC of every detector for every set from outside, as text."""
    columns = [(search, detector) for search, found in results["searches"].items() for detector in _detectors(search)]
    sets = [name for name, found in results["searches"][FREE].items() if "auroc" in found]
    return text_table(
        ["AUROC", *(detector if detector == GIVEN else f"{detector}, {search}" for search, detector in columns)],
        [
            [name, *(f"{results['searches'][search][name]['auroc'][detector]:.3f}" for search, detector in columns)]
            for name in sets
        ],
    )


def picture(results: Results) -> Figure:
    """Draw for every set the PSNR by each search, and the AUROC of the detectors before and after the remedies."""
    searches = results["searches"]
    sets = [name for name in searches[FREE] if name != TRAINING]
    outside = [name for name in sets if name != INSIDE]
    figure = Figure(figsize=(12, 1.6 + 0.42 * len(sets)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (search, found) in enumerate(searches.items()):
        left.barh(
            [place + 0.27 * (k - 1) for place in range(len(sets))],
            [found[name]["psnr"] for name in sets],
            0.25,
            color=SEQUENCE[k],
            label=named(search),
        )
    left.set_yticks(range(len(sets)), sets)
    tidy(left, title="PSNR of reconstructions, by the density of the latent", xlabel="dB")
    shown = [(FREE, ERROR), (PRIOR, ENERGY), (FITTED, ENERGY), (FREE, GIVEN), (FREE, MADE), (FREE, BOTH)]
    for k, (search, detector) in enumerate(shown):
        label = detector if detector == GIVEN else f"{detector}, {search}"
        values = [searches[search][name]["auroc"][detector] for name in outside]
        right.scatter(
            values,
            [place + 0.1 * (k - 2.5) for place in range(len(outside))],
            s=28,
            zorder=3,
            color=(*SEQUENCE, GREY)[k],
            marker="os^Dv*"[k],
            label=named(label),
        )
    right.axvline(0.5, color=GREY, linewidth=1, linestyle="--")
    right.set_yticks(range(len(outside)), outside)
    tidy(right, title="telling it from inside", xlabel="AUROC (0.5: not at all)", xlim=(-0.03, 1.03))
    for axes in (left, right):
        axes.invert_yaxis()
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles, labels, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    return figure


def draw_reconstructions(sets: Sets, made: Made) -> Figure:
    """Draw a row of images for every set, each beside what every search makes of it, with its PSNR in dB."""
    names = [name for name in sets if name != TRAINING]
    groups = []
    for k in range(min(SHOWN, *(len(sets[name]) for name in names))):
        images = torch.stack([sets[name][k] for name in names])
        columns: list[tuple[str, Tensor, Sequence[str]]] = [("image", images, ())]
        for search, found in made.items():
            tiles = torch.stack([found[name][0][k] for name in names])
            columns.append((search, tiles, [f"{value:.1f}" for value in psnr(images, tiles).tolist()]))
        groups.append(columns)
    return draw_grid(groups, [name.split()[0] for name in names])


def _detectors(search: str) -> tuple[str, ...]:
    return (ERROR, GIVEN, MADE, BOTH) if search == FREE else (ERROR, ENERGY, MADE)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("out_of_domain", __doc__, limit=200, batch_size=128)
    add = parser.add_argument
    add(
        "--inside",
        metavar="K",
        type=positive_int,
        help="train the generator on the first K classes (default: half of them)",
    )
    add_outliers(parser)
    add(
        "--sigma",
        metavar="S",
        type=parse_sigma,
        default=25 / 255,
        help="noise level at which the arbiter rates, for images in [0, 1] (default: 25/255)",
    )
    group = parser.add_argument_group("generator")
    group.add_argument(
        "--train-images",
        metavar="N",
        type=positive_int,
        default=5000,
        help="images to train on, at most (default: %(default)s)",
    )
    group.add_argument(
        "--train-steps", metavar="N", type=positive_int, default=1500, help="of the training (default: %(default)s)"
    )
    group.add_argument(
        "--train-batch", metavar="N", type=positive_int, default=64, help="images per step (default: %(default)s)"
    )
    group.add_argument(
        "--latents",
        metavar="N",
        type=positive_int,
        default=64,
        help="dimensions of the latent: many, to overpower it (default: %(default)s)",
    )
    group.add_argument(
        "--width", metavar="N", type=positive_int, default=256, help="of the widest hidden layer (default: %(default)s)"
    )
    group.add_argument(
        "--pixel-sigma",
        metavar="S",
        type=positive_float,
        default=0.05,
        help="deviation of the pixels; a small one makes use of the latent (default: %(default)s)",
    )
    group = parser.add_argument_group("search")
    group.add_argument("--steps", metavar="N", type=positive_int, default=100, help="of Adam (default: %(default)s)")
    group.add_argument(
        "--starts",
        metavar="N",
        type=positive_int,
        default=1,
        help="the encoder's, and the best of random draws (default: %(default)s)",
    )
    group.add_argument(
        "--rate", metavar="R", type=positive_float, default=0.1, help="size of the first step (default: %(default)s)"
    )
    group.add_argument(
        "--free",
        metavar="W",
        type=positive_float,
        default=1e-3,
        help="weight of the density N(0, I) on the latent in the free search (default: %(default)s)",
    )
    group.add_argument(
        "--strength",
        metavar="W",
        type=positive_float,
        default=30.0,
        help="weight of the density on the latent in the others; 1 is that of the training (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
