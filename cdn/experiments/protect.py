"""Protect a classifier that was never trained on noise by the denoiser of a run, and attack what protects it.

Noise of level --sigma is added, RUN takes it away, the frozen classifier sees what is left (denoised smoothing, Salman
et al. 2020); "purified" takes it away in several steps; "vote" denoises from several levels and weights
each by how typical its log p(y) is of clean images. All are measured on clean images, on images that fool the bare
classifier (transferred), and on images made for them: projected gradient descent through the denoiser, over fresh noise
at every step. The bare classifier and the denoised one are also certified, beside RUN itself.

Example:
  python -m cdn.experiments.protect runs/cifar10 --classifier runs/resnet-plain --sigma 0.25 --radius 0.5
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import cdn_kernels
from cdn.cli.arguments import noise_level, nonnegative_float, positive_int, probability, run_command
from cdn.errors import CDNError
from cdn.evaluation.evaluate import accuracy
from cdn.experiments.runner import Experiment, Results, make_parser, text_table
from cdn.methods.attacks.ball import NORMS, Ball
from cdn.methods.attacks.gradient import pgd
from cdn.methods.attacks.losses import cross_entropy
from cdn.methods.attacks.pursuit import Classifier, Pursuit
from cdn.methods.smoothing import LevelVote, Protected, certify, largest_radius
from cdn.methods.smoothing.certified_accuracy import certified_accuracy
from cdn.methods.smoothing.randomized import Randomized
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import BLUE, GREY, ORANGE, SEQUENCE, named, tidy
from cdn.run_folder.opened import Run
from cdn_kernels.noise import SEEDS, seeded

SYSTEMS = ALONE, DENOISED, PURIFIED, VOTE, ITSELF = "alone", "denoised", "purified", "vote", "itself"
# Clean training images that tell the vote what is typical, and rows of images.png.
REFERENCE, ROWS = 256, 8
RADII = (0, 0.1, 0.2, 0.3, 0.4, 0.5)
# What is attacked, what is judged and, if anything, what is certified.
System = tuple[nn.Module, nn.Module, nn.Module | None]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    experiment = Experiment(args)
    classifier = experiment.open(args.classifier)
    _check(experiment.run, classifier)
    x, labels = experiment.test_images()
    ball = Ball(args.norm, args.radius)
    systems = _systems(experiment, classifier.model, args)
    with evaluating(experiment.model, args.precision):
        fooling = {ALONE: attack(classifier.model, x, labels, ball, args)}
        results = {}
        with tqdm(systems.items(), leave=False, disable=not experiment.progress) as bar:
            for name, (attacked, judged, smoothed) in bar:
                bar.set_description(name)
                if name != ALONE:
                    fooling[name] = attack(attacked, x, labels, ball, args)
                share = lambda images: accuracy(judged, images, labels, args.batch_size)
                results[name] = dict(
                    clean=share(x),
                    transferred=share(fooling[ALONE]),
                    attacked=share(fooling[name]),
                    certified=None if smoothed is None else certified(smoothed, x, labels, args),
                )
    print(
        f"{len(x)} test images of {experiment.run.dataset.name}, sigma {args.sigma:g}; attacks in {args.norm} of "
        f"radius {args.radius:g}, {args.attack_steps} steps of {args.eot} draws: accuracy (%), certified at L2 radii"
    )
    print(_table(results, args.radii))
    experiment.save_figure(_picture(results, args))
    if DENOISED in systems:
        images = _images(x, fooling, cast(Protected, systems[DENOISED][2]), args)
        experiment.save_figure(images, "images.png")
    experiment.write(results)


def attack(model: Classifier, x: Tensor, labels: Tensor, ball: Ball, args: argparse.Namespace) -> Tensor:
    """Return images of the ball around x [N, C, H, W] that projected gradient descent found to fool a model most."""
    pursuit = Pursuit(model, x, labels, cross_entropy, batch_size=args.batch_size, stop=False)
    pgd(pursuit, x, ball, args.attack_steps, seeded(args.seed))
    return pursuit.best


def certified(model: nn.Module, x: Tensor, labels: Tensor, args: argparse.Namespace) -> dict[str, float | None]:
    """Return certified accuracies by radius, None where the draws cannot reach it."""
    found = certify(
        model,
        x,
        args.sigma,
        args.n0,
        args.n,
        args.alpha,
        batch_size=args.batch_size,
        seed=args.seed,
        precision=args.precision,
    )
    shares = certified_accuracy(labels.cpu().numpy(), found.label.numpy(), found.radius.numpy(), args.radii)
    reach = largest_radius(args.sigma, args.n, args.alpha)
    return {f"{radius:g}": float(share) if radius <= reach else None for radius, share in zip(args.radii, shares)}


def _systems(experiment: Experiment, classifier: nn.Module, args: argparse.Namespace) -> dict[str, System]:
    """Return by name what is attacked, what is judged (the same with more draws, all fresh), and what is certified."""
    model, classifier = experiment.model, classifier.eval()
    protected = Protected(classifier, model, args.sigma)
    purified = Protected(classifier, model, args.sigma, args.steps)
    noisy = lambda module: lambda x, key: module(cdn_kernels.sample_noise(x, args.sigma, key)[0])
    randomized = lambda classify: (
        Randomized(classify, args.eot, args.seed),
        Randomized(classify, args.draws, (args.seed + 1) % SEEDS),
    )
    systems = {
        ALONE: (classifier, classifier, classifier),
        DENOISED: (*randomized(noisy(protected)), protected),
        PURIFIED: (*randomized(noisy(purified)), None),
    }
    if experiment.run.has_density:
        reference, _ = experiment.images(experiment.run.dataset.train, REFERENCE)
        vote = LevelVote(classifier, model, args.levels, reference, cdn_kernels.Noise((args.seed + 2) % SEEDS))
        systems[VOTE] = (*randomized(vote), None)
    if experiment.run.has_density and experiment.run.has_classes:
        systems[ITSELF] = (model, model, model)
    for name in args.systems or ():
        if name not in systems:
            lack = "log-density" if name == VOTE else "classes"
            raise CDNError(f"--systems {name}: {experiment.run.path} has no {lack}")
    return {name: systems[name] for name in systems if name in (args.systems or systems)}


def _table(results: Results, radii: Sequence[float]) -> str:
    percent = lambda value: None if value is None else f"{100 * value:.1f}"
    named = [f"{radius:g}" for radius in radii]
    rows = [
        [
            name,
            *(percent(result[key]) for key in ("clean", "transferred", "attacked")),
            *(percent((result["certified"] or {}).get(radius)) for radius in named),
        ]
        for name, result in results.items()
    ]
    return text_table(["", "clean", "transferred", "attacked", *(f"certified {radius}" for radius in named)], rows)


def _picture(results: Results, args: argparse.Namespace) -> Figure:
    """Draw accuracies side by side, and certified accuracy against radius."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    kinds = [
        ("clean", "clean", GREY),
        ("transferred", "images that fool it alone", BLUE),
        ("attacked", "images made for each", ORANGE),
    ]
    for k, (key, label, color) in enumerate(kinds):
        bars = left.bar(
            [place + 0.27 * (k - 1) for place in range(len(results))],
            [100 * result[key] for result in results.values()],
            0.25,
            color=color,
            label=named(label),
        )
        left.bar_label(bars, fmt="%.0f", fontsize=7)
    left.set_xticks(range(len(results)), list(results))
    tidy(left, title=f"accuracy (%), attacks in {args.norm.replace('l', 'L')} of radius {args.radius:g}")
    left.set_ylim(0, 119)
    left.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    for name, color in zip((ALONE, DENOISED, ITSELF), SEQUENCE[::2]):
        shares = results.get(name, {}).get("certified") or {}
        points = [(float(radius), 100 * share) for radius, share in shares.items() if share is not None]
        if points:
            right.plot(*zip(*points), "o-", color=color, label=named(name), markersize=4)
            right.legend(frameon=False, fontsize=8)
    tidy(right, title=f"certified accuracy (%), σ = {args.sigma:g}", xlabel="radius (L2, images in [0, 1])")
    right.set_ylim(0, 101)
    return figure


def _images(x: Tensor, fooling: dict[str, Tensor], protected: Protected, args: argparse.Namespace) -> Figure:
    """Draw clean images, those made for the classifier alone and behind the denoiser, and what it then sees."""
    columns, made = [], {"clean": x, "for it alone": fooling[ALONE], "for it denoised": fooling[DENOISED]}
    for title, images in made.items():
        images = images[:ROWS]
        noisy, _ = cdn_kernels.sample_noise(images, args.sigma, cdn_kernels.Noise(args.seed))
        with torch.no_grad():
            seen = protected.purify(noisy)
        columns.append([(title, images, ()), ("noisy", noisy, ()), ("denoised", seen, ())])
    return draw_grid(columns)


def _check(run: Run, classifier: Run) -> None:
    if not run.denoises:
        raise CDNError(f"{run.path}: was trained to classify only, it cannot denoise")
    if not classifier.has_classes:
        raise CDNError(f"--classifier {classifier.path}: was trained to denoise only, it has no classes")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("protect", __doc__, limit=64, batch_size=64)
    add = parser.add_argument
    add("--classifier", metavar="RUN2", type=Path, required=True, help="the run whose model is protected, frozen")
    add("--systems", choices=SYSTEMS, nargs="+", help="measure only these (default: all that RUN allows)")
    add("--sigma", metavar="S", type=noise_level, default=0.25, help="noise level (default: %(default)s)")
    add("--steps", metavar="N", type=positive_int, default=3, help="of purification (default: %(default)s)")
    add(
        "--levels",
        metavar="S",
        type=noise_level,
        nargs="+",
        default=[0.12, 0.25, 0.5],
        help="noise levels that vote (default: 0.12 0.25 0.5)",
    )
    add("--norm", choices=NORMS, default="l2", help="of the attacks (default: %(default)s)")
    add("--radius", metavar="R", type=nonnegative_float, default=0.5, help="of the attacks (default: %(default)s)")
    add("--attack-steps", metavar="N", type=positive_int, default=10, help="of gradient ascent (default: %(default)s)")
    add(
        "--eot",
        metavar="N",
        type=positive_int,
        default=2,
        help="draws of noise per step of an attack (default: %(default)s)",
    )
    add(
        "--draws", metavar="N", type=positive_int, default=16, help="draws of noise per decision (default: %(default)s)"
    )
    add("--n0", metavar="N", type=positive_int, default=20, help="draws that guess a class (default: %(default)s)")
    add("--n", metavar="N", type=positive_int, default=200, help="draws that certify it (default: %(default)s)")
    add(
        "--alpha",
        metavar="A",
        type=probability,
        default=0.001,
        help="probability that a certificate is wrong (default: %(default)s)",
    )
    add(
        "--radii",
        metavar="R",
        type=nonnegative_float,
        nargs="+",
        default=RADII,
        help=f"of certified accuracies (default: {' '.join(map(str, RADII))})",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
