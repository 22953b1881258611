"""Denoise without a class, with the true one and with a wrong one, and magnify what the class changes.

    python -m cdn.experiments.denoisers runs/cifar10
    python -m cdn.experiments.denoisers runs/digits --sigmas 25 50 100 --shown 100 --rows 8

The wrong class is the most probable one that is not true. Prints, per noise level, the PSNR without a class and the
paired differences that the true and the wrong class make, and how exactly the two identities of class-conditional
denoising hold in float32 and in float64. Writes report.json, denoisers.png (images, and differences of denoisers beside
the adversarial gradients that they equal) and gains.png (the differences of PSNR).
"""

import argparse
import copy
import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor, nn
from tqdm import tqdm

from cdn.cli.arguments import positive_float, positive_int, run_command
from cdn.errors import CDNError
from cdn.evaluation.evaluate import EVALUATION
from cdn.evaluation.metrics import psnr
from cdn.experiments.runner import Experiment, Results, add_grey_sigmas, make_parser, mean_and_error, text_table
from cdn.methods.class_conditional import (
    ClassGains,
    adversarial_gradient,
    class_gains,
    denoise_with_classes,
    difference_identity,
    mixture_identity,
)
from cdn.model.capabilities import kind
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid, with_psnr
from cdn.pictures.style import BLUE, GREY, ORANGE, named, tidy
from cdn_kernels import Noise, standard_normal

# The identities cost a denoiser per class, in float64 too.
IDENTITY_IMAGES = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    experiment = Experiment(args)
    model, classes = experiment.model, experiment.run.dataset.classes
    if not (experiment.run.has_density and experiment.run.has_classes) or len(classes) < 2:
        raise CDNError(
            f"{args.run}: expected a GradResNet of at least two classes, whose denoiser can be told one, "
            f"got {kind(model, experiment.run.objective)} and {len(classes)}"
        )
    x, labels = experiment.test_images(exact=True)
    if not len(x):
        raise CDNError(
            f"{args.run}: PSNR needs images that exist losslessly, but the test images of "
            f"{experiment.run.dataset.name} are all marked as inexact"
        )
    noise = standard_normal(x.shape, Noise(args.seed, EVALUATION), device=x.device)
    levels = {}
    with tqdm(total=len(args.sigmas) * len(x), unit="image", leave=False, disable=not experiment.progress) as bar:
        for grey in args.sigmas:
            gains = class_gains(
                model, x, labels, noise, grey / 255, batch_size=args.batch_size, precision=args.precision, bar=bar
            )
            levels[f"{grey:g}"] = summarize(gains) | dict(
                identities=identities(
                    model, x[:IDENTITY_IMAGES], labels[:IDENTITY_IMAGES], noise[:IDENTITY_IMAGES], grey / 255
                )
            )
    figure, magnification = picture(
        model,
        x[: args.rows],
        labels[: args.rows],
        noise[: args.rows],
        args.shown,
        classes,
        args.magnification,
        args.precision,
    )
    print(
        f"{args.run}: {len(x)} test images of {experiment.run.dataset.name}; differences of denoisers at sigma "
        f"{args.shown:g}/255 are shown magnified {magnification:g} times"
    )
    print(gains_table(levels), identities_table(levels), sep="\n\n")
    experiment.save_figure(figure, "denoisers.png")
    experiment.save_figure(gains_picture(levels), "gains.png")
    experiment.write(dict(images=len(x), magnification=magnification, sigma=levels))


def summarize(gains: ClassGains) -> Results:
    """Return means over images, and paired differences with their standard errors, of :class:`ClassGains`.

    Were the model exact, the true class would lower the mean squared error by the mean square of D(y, c) - D(y), by
    Pythagoras; ``exact_gain`` is that, and ``gain`` what it was lowered by, both as shares of the error of D(y).
    """
    true, error = gains.psnr_true - gains.psnr_unconditional, gains.error.mean()
    psnrs = ("psnr_noisy", "psnr_unconditional", "psnr_true", "psnr_wrong")
    return dict(
        {key: float(getattr(gains, key).mean()) for key in psnrs},
        accuracy=float(gains.right.double().mean()),
        true=mean_and_error(true),
        wrong=mean_and_error(gains.psnr_wrong - gains.psnr_unconditional),
        true_where_misclassified=mean_and_error(true[~gains.right]),
        gain=mean_and_error((gains.error - gains.error_true) / error),
        exact_gain=mean_and_error(gains.moved / error),
    )


def identities(model: nn.Module, x: Tensor, labels: Tensor, noise: Tensor, sigma: float) -> Results:
    """Measure both identities in float32 and float64: {dtype: {identity: [maximum, relative]}}.

    Args:
        model: a :class:`cdn.GradResNet`.
        x, noise: clean images and unit noise, [N, C, H, W].
        labels: the true classes, int64 [N].
        sigma: noise level.
    """
    results = {}
    for name, twin in (("float32", model), ("float64", copy.deepcopy(model).double())):
        with evaluating(twin, "float32"):
            y = (x + sigma * noise).to(getattr(torch, name))
            results[name] = dict(
                difference=list(difference_identity(twin, y, sigma, labels)),
                mixture=list(mixture_identity(twin, y, sigma)),
            )
    return results


def gains_table(levels: Results) -> str:
    """Return the PSNR per noise level and what classes change, as Markdown."""
    header = [
        "sigma * 255",
        "accuracy",
        "noisy dB",
        "no class dB",
        "true class dB",
        "wrong class dB",
        "true, misclassified dB",
        "error lowered by",
        "if exact, by",
    ]
    rows = []
    for grey, level in levels.items():
        rows.append(
            [
                grey,
                f"{level['accuracy']:.1%}",
                f"{level['psnr_noisy']:.2f}",
                f"{level['psnr_unconditional']:.3f}",
                *(_with_error(level[key], "+.4f") for key in ("true", "wrong", "true_where_misclassified")),
                *(_with_error(level[key], ".3%") for key in ("gain", "exact_gain")),
            ]
        )
    return text_table(header, rows)


def identities_table(levels: Results) -> str:
    """Return how exactly the identities hold, as Markdown."""
    names = dict(difference="difference of denoisers, adversarial gradient", mixture="average over classes, D")
    rows = [
        [name, grey, *(f"{value:.1e}" for dtype in ("float32", "float64") for value in level["identities"][dtype][key])]
        for key, name in names.items()
        for grey, level in levels.items()
    ]
    return text_table(["identity of", "sigma * 255", "float32 max", "relative", "float64 max", "relative"], rows)


def picture(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    noise: Tensor,
    grey: float,
    classes: Sequence[str],
    magnification: float | None = None,
    precision: str = "float32",
) -> tuple[Figure, float]:
    """Draw denoised images and their magnified differences around grey, one image per row.

    Captions are PSNR in dB, what the class changes in it, the root mean square of differences, and p(c | y).

    Args:
        model: a :class:`cdn.GradResNet`.
        x, labels, noise: the images to draw [N, C, H, W], their classes [N], and unit noise.
        grey: noise level in grey levels of 255.
        classes: their names.
        magnification: of the differences; None for a round number at which three times the root mean square of
            those of the wrong class about fills the range.
        precision: "float32" or "bf16".

    Returns:
        (figure, magnification).
    """
    sigma = grey / 255
    y = x + sigma * noise
    with evaluating(model, precision):
        denoised = denoise_with_classes(model, y, sigma, labels)
        gradients = [adversarial_gradient(model, y, label) for label in (labels, denoised.wrong_label)]
    differences = [image - denoised.unconditional for image in (denoised.true, denoised.wrong)]
    if magnification is None:
        magnification = round_down(0.5 / max(3 * float(differences[1].square().mean().sqrt()), 1e-12))
    shown = lambda change: 0.5 + magnification * change
    gain = lambda images: (psnr(images, x) - psnr(denoised.unconditional, x)).tolist()
    named = lambda title, images, label: (
        *with_psnr(title, images, x)[:2],
        [f"{classes[c]} {db:+.3f}" for c, db in zip(label.tolist(), gain(images))],
    )
    probability = lambda label: [f"p = {p:.2g}" for p in denoised.posterior.gather(1, label[:, None])[:, 0].tolist()]
    size = lambda change: [f"rms {255 * float(image.square().mean().sqrt()):.2g}/255" for image in change]
    columns: list[Sequence[tuple[str, Tensor | Sequence[Tensor], Sequence[str]]]] = [
        [("clean", x, ())],
        [
            with_psnr(f"σ = {grey:g}/255", y, x),
            with_psnr("no class", denoised.unconditional, x),
            named("true class", denoised.true, labels),
            named("wrong class", denoised.wrong, denoised.wrong_label),
        ],
        [
            (f"true − none\n× {magnification:g}", shown(differences[0]), size(differences[0])),
            (f"wrong − none\n× {magnification:g}", shown(differences[1]), size(differences[1])),
        ],
        [
            (f"∇log p(true)\n× {magnification:g}σ²", shown(sigma**2 * gradients[0]), probability(labels)),
            (
                f"∇log p(wrong)\n× {magnification:g}σ²",
                shown(sigma**2 * gradients[1]),
                probability(denoised.wrong_label),
            ),
        ],
    ]
    return draw_grid(columns, [classes[label] for label in labels.tolist()]), magnification


def gains_picture(levels: Results) -> Figure:
    """Plot the paired differences of PSNR against the noise level, with two standard errors."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    greys = [float(grey) for grey in levels]
    axes.axhline(0, color=GREY, linewidth=1)
    for key, color, label in (("true", BLUE, "true class"), ("wrong", ORANGE, "most probable wrong class")):
        mean, error = zip(*(level[key] for level in levels.values()))
        axes.errorbar(
            greys,
            mean,
            [2 * e for e in error],
            fmt="o-",
            color=color,
            markersize=4,
            linewidth=1.4,
            capsize=3,
            label=named(label),
        )
    axes.set_xscale("log")
    axes.set_xticks(greys, [f"{grey:g}" for grey in greys])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize=8)
    tidy(
        axes,
        title="What a class changes (± 2 standard errors)",
        xlabel="noise level σ (grey levels of 255)",
        ylabel="PSNR, difference to no class (dB)",
    )
    return figure


def round_down(value: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 50, ... (and their tenths, ...) that is at most a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(step * power for step in (1, 2, 5) if step * power <= value)


def _with_error(pair: Sequence[float], form: str) -> str:
    return "-" if math.isnan(pair[0]) else f"{pair[0]:{form}} ± {pair[1]:{form.removeprefix('+')}}"


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("denoisers", __doc__, limit=1000, batch_size=64)
    add_grey_sigmas(parser)
    parser.add_argument(
        "--shown",
        metavar="S",
        type=positive_float,
        default=50,
        help="noise level of denoisers.png, in grey levels of 255 (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        metavar="N",
        type=positive_int,
        default=6,
        help="images in denoisers.png, the first of the test split (default: %(default)s)",
    )
    parser.add_argument(
        "--magnification",
        metavar="M",
        type=positive_float,
        help="of the differences (default: chosen so that those of the wrong class fill the range)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
