"""Sampling: images drawn from the prior that a trained denoiser implies, and how much they are like images.

    python -m cdn.experiments.sampling runs/cifar10 --limit 500 --classifier runs/resnet

Two samplers: the stochastic coarse-to-fine ascent of Kadkhodaie & Simoncelli (2021) and annealed Langevin dynamics
(Song & Ermon 2019), unconditional and given the class. Draws the samples (a row per class) and, beside some of them,
the nearest images of the training, so that copies would be seen. The score is a Fréchet distance between features of
the model itself, or of --classifier, pooled from its last stage: not the usual FID, and to be compared with nothing but
the other rows of its table, test images (a floor) and uniform noise (a ceiling). All sets have --limit images, as few
images make the distance larger.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cdn.cli.arguments import positive_float, positive_int, run_command
from cdn.errors import CDNError
from cdn.evaluation.evaluate import EVALUATION, accuracy
from cdn.experiments.runner import Experiment, Results, make_parser, text_table
from cdn.methods.prior.annealed import langevin, noise_ladder
from cdn.methods.prior.ascent import ascend
from cdn.methods.prior.likeness import frechet_distance, nearest_images, pooled_features
from cdn.methods.prior.residual import blind_residual, noisy_start
from cdn.model.capabilities import classifies
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid
from cdn_kernels import Noise
from cdn_kernels.noise import seeded

METHODS = ("ascent", "langevin")
PER_CLASS, SHOWN = 5, 8
# Batches and steps count up from the key of a set, which has to be further from the next than that.
BATCH, SET = 1 << 20, 1 << 40
# The nearest training images of each set and their distances.
Nearest = dict[str, tuple[Tensor, Tensor]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    for name in ("step", "beta", "langevin_step"):
        if getattr(args, name) > 1:
            raise CDNError(f"--{name.replace('_', '-')}: expected a number in (0, 1], got {getattr(args, name)}")
    if args.levels < 2:
        raise CDNError(f"--levels: expected at least 2 noise levels, got {args.levels}")
    experiment = Experiment(args)
    run = experiment.run
    if not run.denoises:
        raise CDNError(f"{args.run}: expected a model that was trained to denoise, got a plain classifier")
    judge = _judge(experiment)
    test, _ = experiment.test_images()
    count, classes = len(test), len(run.dataset.classes)
    if count < 2:
        raise CDNError(f"--limit: expected at least 2 images, whose features can vary, got {count}")
    conditions: dict[str, Tensor | None] = {"": None}
    if run.has_classes:
        conditions[", given the class"] = torch.arange(count, device=experiment.device) % classes
    rows, samples = {}, {}
    for position, (method, (suffix, label)) in enumerate((m, c) for m in args.methods for c in conditions.items()):
        start = time.perf_counter()
        images, steps = draw(experiment, method, label, count, EVALUATION + SET * position)
        samples[method + suffix] = images
        rows[method + suffix] = dict(
            steps=steps, seconds=time.perf_counter() - start, agreement=_agreement(judge, args, images, label)
        )
    noise = torch.rand(test.shape, generator=seeded(args.seed)).to(experiment.device)
    sets = samples | {"test images": test, "uniform noise": noise}
    nearest = measure(experiment, judge, sets, rows)
    print(
        f"{args.run}: {count} images of each kind, features of {args.classifier or args.run}, chance of agreement "
        f"1/{classes}"
    )
    header = ["images", "Fréchet distance", "nearest training image", "classified as meant", "steps", "seconds"]
    print(
        text_table(
            header,
            [
                [name, *map(row.get, ("frechet", "nearest", "agreement", "steps", "seconds"))]
                for name, row in rows.items()
            ],
        )
    )
    experiment.save_figure(_grid(samples, run.dataset.classes))
    experiment.save_figure(_pairs(sets, nearest), "nearest.png")
    experiment.write(dict(count=count, features=str(args.classifier or args.run), chance=1 / classes, sets=rows))


def draw(experiment: Experiment, method: str, label: Tensor | None, count: int, offset: int) -> tuple[Tensor, float]:
    """Return samples [N, C, H, W], clipped to [0, 1], and the mean number of steps of a sample.

    Args:
        experiment: whose model and options to take.
        method: "ascent" or "langevin".
        label: None, or the class of each sample [N].
        count: N.
        offset: of the noise.
    """
    args, run = experiment.args, experiment.run
    levels = noise_ladder(run.levels.high, run.levels.low, args.levels)
    parts, steps = [], 0
    with evaluating(run.model, args.precision):
        for batch, indices in enumerate(torch.arange(count).split(args.batch_size)):
            key = Noise(args.seed, offset + BATCH * batch)
            residual = blind_residual(run.model, None if label is None else label[indices], guidance=args.guidance)
            y = noisy_start((len(indices), *run.dataset.shape), key, sigma=run.levels.high, device=experiment.device)
            if method == "ascent":
                y, path, finished = ascend(
                    residual,
                    y,
                    key,
                    step=args.step,
                    beta=args.beta,
                    stop=run.levels.low,
                    limit=args.step_limit,
                    progress=experiment.progress,
                )
                steps += len(path) * len(indices)
                if not finished.all():
                    print(f"ascent: {int((~finished).sum())} samples still had noise after {args.step_limit} steps")
            else:
                y = langevin(
                    residual,
                    y,
                    levels,
                    key,
                    step=args.langevin_step,
                    repeats=args.repeats,
                    progress=experiment.progress,
                )
                steps += args.levels * args.repeats * len(indices)
            parts.append(y.clamp(0, 1))
    images = torch.cat(parts)
    if not images.isfinite().all():
        raise CDNError(
            f"{method}: the walk diverged, as the network denoises too badly for it: try "
            f"{'a greater --beta' if method == 'ascent' else 'a smaller --langevin-step'}"
        )
    return images, steps / count


def measure(experiment: Experiment, judge: nn.Module, sets: dict[str, Tensor], rows: dict[str, Results]) -> Nearest:
    """Add to the rows how far each set is from the training images; return the nearest of those and their distances."""
    args, run = experiment.args, experiment.run
    train = run.dataset.train
    with evaluating(judge, args.precision):
        features = lambda images: pooled_features(judge, images, args.batch_size)
        reference = features(experiment.spread_images(train, args.reference)[0])
        distances = {name: frechet_distance(features(images), reference) for name, images in sets.items()}
    # One walk through the training images serves all sets.
    found = nearest_images(torch.cat(list(sets.values())), train, mirrored=bool(run.config["training"].get("flip")))
    nearest = dict(zip(sets, zip(*(part.split(len(part) // len(sets)) for part in found))))
    for name in sets:
        rows.setdefault(name, {}).update(frechet=distances[name], nearest=float(nearest[name][1].median()))
    return nearest


def _judge(experiment: Experiment) -> nn.Module:
    """Return the network whose features and classes the samples are judged by."""
    args, run = experiment.args, experiment.run
    if args.classifier is None:
        return run.model
    judge = experiment.open(args.classifier)
    if not judge.has_classes:
        raise CDNError(f"--classifier {args.classifier}: was trained to denoise only, it has no classes")
    return judge.model


def _agreement(judge: nn.Module, args: argparse.Namespace, images: Tensor, label: Tensor | None) -> float | None:
    """Return the share of images that are classified as the class they were drawn from, or None."""
    if label is None or not classifies(judge):
        return None
    with evaluating(judge, args.precision):
        return accuracy(judge, images, label, args.batch_size)


def _grid(samples: dict[str, Tensor], classes: Sequence[str]) -> Figure:
    """Draw a group of columns per set of samples; rows are classes where samples were drawn given the class."""
    groups = []
    for name, images in samples.items():
        # Sample i is of class i modulo the number of classes.
        columns = images[: PER_CLASS * len(classes)].split(len(classes))
        title = name.replace(", ", "\n") if "," in name else f"{name}\nof any class"
        groups.append([(title if i == len(columns) // 2 else "", column, ()) for i, column in enumerate(columns)])
    return draw_grid(groups, classes[: len(images)])


def _pairs(sets: dict[str, Tensor], nearest: Nearest) -> Figure:
    """Draw images beside the nearest ones of the training, with the root mean square difference."""
    groups = []
    for name, images in sets.items():
        found, distance = nearest[name]
        captions = [f"{value:.3f}" for value in distance[:SHOWN].tolist()]
        groups.append(
            [(name.replace(", ", "\n"), images[:SHOWN], ()), ("nearest in\ntraining", found[:SHOWN], captions)]
        )
    return draw_grid(groups)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("sampling", __doc__, limit=100, batch_size=100)
    parser.add_argument(
        "--methods",
        metavar="NAME",
        choices=METHODS,
        nargs="+",
        default=METHODS,
        help=f"samplers: {', '.join(METHODS)} (default: both)",
    )
    parser.add_argument(
        "--classifier",
        metavar="RUN",
        type=Path,
        help="run whose features and classes judge the samples (default: the model itself)",
    )
    parser.add_argument(
        "--reference",
        metavar="N",
        type=positive_int,
        default=2000,
        help="training images to compare features with (default: %(default)s)",
    )
    parser.add_argument(
        "--guidance",
        metavar="W",
        type=positive_float,
        default=1.0,
        help="how many times to take the difference that the class makes (default: %(default)s)",
    )
    ascent = parser.add_argument_group("stochastic ascent")
    ascent.add_argument(
        "--step",
        metavar="H",
        type=positive_float,
        default=0.01,
        help="share of the residual of the first step (default: %(default)s)",
    )
    ascent.add_argument(
        "--beta",
        metavar="B",
        type=positive_float,
        default=0.2,
        help="1 puts no noise back; less takes longer (default: %(default)s)",
    )
    ascent.add_argument(
        "--step-limit",
        metavar="N",
        type=positive_int,
        default=2000,
        help="greatest number of steps (default: %(default)s)",
    )
    dynamics = parser.add_argument_group("annealed Langevin dynamics")
    dynamics.add_argument(
        "--langevin-step",
        metavar="H",
        type=positive_float,
        default=0.1,
        help="share of the residual of each step (default: %(default)s)",
    )
    dynamics.add_argument(
        "--levels",
        metavar="N",
        type=positive_int,
        default=10,
        help="noise levels, from the highest of the training to the lowest (default: %(default)s)",
    )
    dynamics.add_argument(
        "--repeats", metavar="N", type=positive_int, default=10, help="steps at each level (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
