"""Ask by which similarity reconstructions, and neighbours, classify best.

One small variational autoencoder per class reconstructs every test image (analysis by synthesis), and the class wins
whose reconstruction is most similar: by the squared distance of pixels, by SSIM, by the features of a classifier, or by
information-estimation, the distance of denoising errors over noise levels (Ohayon et al. 2025). "judged": all see the
same reconstructions, found by pixels. "searched": each is also what the reconstructions are searched by, with the
density of the latent (for pixels, the classifier of Schott et al. 2018). As a control without generators, "neighbour":
the class of the most similar of a few training images. All are measured on clean images, on noisy ones, and on images
shifted by a pixel. Prints a table, and writes report.json, picture.png and reconstructions.png into RUN/similarities.

Example:
  python -m cdn.experiments.similarities runs/cifar10 --limit 200 --search pixels SSIM --classifier runs/resnet
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from cdn.cli.arguments import positive_int, run_command, whole_number
from cdn.commands.denoise import parse_sigma
from cdn.errors import CDNError
from cdn.evaluation.evaluate import EVALUATION
from cdn.experiments.runner import Experiment, make_parser, text_table
from cdn.methods.distances.dissimilarity import (
    FEATURES,
    INFORMATION,
    PIXELS,
    SSIM,
    Similarity,
    Structural,
    features,
    in_nats,
    information,
    nearest_class,
    pixels,
)
from cdn.methods.synthesis import ClassGenerators, Inference, fit, infer
from cdn.model.finite import decided
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import BLUE, GREY, ORANGE, named, tidy
from cdn.run_folder.opened import Run
from cdn_kernels import Noise, NoiseLevels, sample_noise

NAMES = PIXELS, SSIM, FEATURES, INFORMATION
JUDGED, SEARCHED, NEIGHBOUR = "judged", "searched", "neighbour"
ROWS = 6
# Accuracies by way, similarity and kind of image.
Shares = dict[str, dict[str, dict[str, float]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    experiment = Experiment(args)
    run = experiment.run
    experiment.require_density()
    classifier = experiment.open(args.classifier) if args.classifier else run
    if not classifier.has_classes:
        raise CDNError(f"{classifier.path}: was trained to denoise only, its features are not those of a classifier")
    levels = _levels(args, run)
    training, labels = experiment.spread_images(run.dataset.train, args.train_images)
    generators = ClassGenerators(len(run.dataset.classes), run.dataset.shape, width=args.width, seed=args.seed)
    generators.to(experiment.device)
    try:
        fit(generators, training, labels, steps=args.train_steps, seed=args.seed, progress=experiment.progress)
        with evaluating(run.model, args.precision), evaluating(classifier.model, args.precision):
            shares, made = measure(experiment, generators, classifier.model, levels, training, labels)
    except ValueError as error:
        raise CDNError(f"{run.path}: {error}") from None
    results = dict(
        images=min(args.limit, len(run.dataset.test)),
        training=len(training),
        sigma=float(generators.sigma.detach()),
        accuracy=shares,
    )
    print(
        f"{results['images']} test images of {run.dataset.name}, generators of {len(training)} training images, "
        f"pixel deviation {results['sigma']:.3f}; neighbours among {args.examples} images of each class"
    )
    print(table(shares))
    experiment.save_figure(picture(shares, results["images"]))
    experiment.save_figure(made, "reconstructions.png")
    experiment.write(results)


def measure(
    experiment: Experiment,
    generators: ClassGenerators,
    classifier: nn.Module,
    levels: NoiseLevels,
    training: Tensor,
    labels: Tensor,
) -> tuple[Shares, Figure]:
    """Return accuracies by way, similarity and kind of image, and a figure of what was reconstructed."""
    args, run = experiment.args, experiment.run
    similarities: dict[str, Similarity] = {
        PIXELS: pixels(),
        SSIM: Structural(),
        FEATURES: features(classifier),
        INFORMATION: information(run.model, levels, nodes=args.nodes, noise=Noise(args.seed)),
    }
    x, truth = experiment.test_images()
    kinds = {
        "clean": x,
        f"σ = {round(255 * args.sigma)}/255": sample_noise(x, args.sigma, Noise(args.seed, EVALUATION))[0].clamp(0, 1),
        "shifted": shifted(x),
    }
    found = {kind: infer(generators, images, **_search(args)) for kind, images in kinds.items()}
    chosen = _few_of_each(labels, args.examples)
    sigma = generators.sigma.detach()
    # What a similarity is in nats is read from training images and the reconstructions of their own classes.
    own = infer(generators, training[chosen], **_search(args)).reconstructions[range(len(chosen)), labels[chosen]]
    shares: Shares = {way: {} for way in (JUDGED, SEARCHED, NEIGHBOUR)}
    right = lambda values: float((decided(values) == truth).double().mean())
    with torch.no_grad(), tqdm(similarities.items(), leave=False, disable=not experiment.progress) as bar:
        for name, similarity in bar:
            bar.set_description(name)
            shares[JUDGED][name] = {
                kind: right(-_in_parts(similarity, images, found[kind].reconstructions, args.batch_size))
                for kind, images in kinds.items()
            }
            shares[NEIGHBOUR][name] = {
                kind: right(-nearest_class(similarity, images, training[chosen], labels[chosen], generators.classes))
                for kind, images in kinds.items()
            }
            if name in args.search:
                distance = in_nats(similarity, training[chosen], own, sigma)
                shares[SEARCHED][name] = {
                    kind: right(infer(generators, images, distance, batch_size=args.batch_size, **_search(args)).bound)
                    for kind, images in kinds.items()
                }
    return shares, draw_reconstructions(kinds, found, truth, run.dataset.classes)


def shifted(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] moved right by a pixel; the first column is repeated."""
    return F.pad(x, (1, 0, 0, 0), mode="replicate")[..., :-1]


def table(shares: Shares) -> str:
    """Return the accuracies as text: a row per similarity, a column per way and kind of image."""
    kinds = list(shares[JUDGED][PIXELS])
    cell = lambda way, name, kind: f"{shares[way][name][kind]:.1%}" if name in shares[way] else None
    return text_table(
        ["accuracy", *(f"{way}, {kind}" for way in shares for kind in kinds)],
        [[name, *(cell(way, name, kind) for way in shares for kind in kinds)] for name in NAMES],
    )


def picture(shares: Shares, count: int) -> Figure:
    """Draw the accuracies: a panel per way, a group of bars per similarity."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    titles = {
        JUDGED: "most similar reconstruction,\nfound by pixels",
        NEIGHBOUR: "most similar training image\n",
        SEARCHED: "best explanation, searched by\nthe similarity and the latent's density",
    }
    kinds = list(shares[JUDGED][PIXELS])
    panels = figure.subplots(1, 3, sharey=True)
    for axes, way in zip(panels, shares):
        for k, (kind, color) in enumerate(zip(kinds, (GREY, BLUE, ORANGE))):
            drawn = axes.bar(
                [place + 0.27 * (k - 1) for place, name in enumerate(NAMES) if name in shares[way]],
                [100 * shares[way][name][kind] for name in NAMES if name in shares[way]],
                0.25,
                color=color,
                label=named(kind),
            )
            axes.bar_label(drawn, fmt="%.0f", fontsize=7)
        axes.set_xticks(range(len(NAMES)), NAMES)
        tidy(axes, title=titles[way])
        axes.set(xlim=(-0.5, len(NAMES) - 0.5), ylim=(0, 112))
    panels[0].set_ylabel(f"accuracy (%), {count} images")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=8)
    return figure


def draw_reconstructions(
    kinds: dict[str, Tensor], found: dict[str, Inference], labels: Tensor, classes: Sequence[str]
) -> Figure:
    """Draw images of every kind, the reconstruction of their own class and that of the next one."""
    rows = range(min(ROWS, len(labels)))
    groups = []
    for kind, images in kinds.items():
        made = found[kind].reconstructions
        wrong = (labels + 1) % made.shape[1]
        groups.append(
            [
                (kind, images[:ROWS], ()),
                ("own\nclass", made[rows, labels[rows]], ()),
                ("another\nclass", made[rows, wrong[rows]], [classes[c] for c in wrong[:ROWS].tolist()]),
            ]
        )
    return draw_grid(groups, [classes[c] for c in labels[:ROWS].tolist()])


def _in_parts(similarity: Similarity, x: Tensor, r: Tensor, batch_size: int) -> Tensor:
    return torch.cat([similarity(*pair) for pair in zip(x.split(batch_size), r.split(batch_size))])


def _few_of_each(labels: Tensor, count: int) -> Tensor:
    """Return the indices of the first images of every class, at most count of each."""
    return torch.cat([(labels == c).nonzero()[:count, 0] for c in labels.unique()])


def _levels(args: argparse.Namespace, run: Run) -> NoiseLevels:
    """Return the noise levels of information, those of the training or from a higher one on."""
    low = run.levels.low if args.low is None else args.low
    if low >= run.levels.high:
        raise CDNError(f"--low: expected less than {run.levels.high:g}, the highest level of the training, got {low:g}")
    return replace(run.levels, law="log-uniform", low=low)


def _search(args: argparse.Namespace) -> dict[str, Any]:
    return dict(steps=args.steps, starts=1, seed=args.seed)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("similarities", __doc__, limit=100, batch_size=8)
    add = parser.add_argument
    add("--classifier", metavar="RUN2", type=Path, help="whose features to compare (default: RUN itself)")
    add(
        "--search",
        choices=NAMES,
        nargs="+",
        default=[PIXELS, SSIM, FEATURES],
        help="the similarities to search by; information takes long (default: pixels SSIM features)",
    )
    add(
        "--sigma",
        metavar="S",
        type=parse_sigma,
        default=25 / 255,
        help="noise level of noisy images, as 0.1 or 25/255; they are clipped (default: 25/255)",
    )
    add(
        "--examples",
        metavar="N",
        type=positive_int,
        default=20,
        help="training images of each class that are neighbours (default: %(default)s)",
    )
    add("--nodes", metavar="N", type=positive_int, default=4, help="noise levels of information (default: %(default)s)")
    add(
        "--low",
        metavar="S",
        type=parse_sigma,
        help="lowest noise level of information, as 0.1 or 25/255 (default: that of the training)",
    )
    group = parser.add_argument_group("generators")
    group.add_argument(
        "--train-images",
        metavar="N",
        type=positive_int,
        default=5000,
        help="to train on, at most (default: %(default)s)",
    )
    group.add_argument(
        "--train-steps", metavar="N", type=positive_int, default=500, help="of the training (default: %(default)s)"
    )
    group.add_argument(
        "--width", metavar="N", type=positive_int, default=128, help="of the widest hidden layer (default: %(default)s)"
    )
    group.add_argument(
        "--steps",
        metavar="N",
        type=whole_number,
        default=30,
        help="of each search, from what the encoder says (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
