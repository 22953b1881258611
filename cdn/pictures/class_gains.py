"""What a class changes in denoised images: tables, images, and gains against the noise level."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from cdn.evaluation.metrics import psnr
from cdn.files import Results
from cdn.methods.class_conditional import adversarial_gradient, denoise_with_classes, round_down
from cdn.model.inputs import sigma_text
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid, with_psnr
from cdn.pictures.style import BLUE, GREY, ORANGE, named, tidy
from cdn.pictures.tables import text_table, with_error


def gains_table(levels: Results) -> str:
    """Return the PSNR per noise level and what classes change, as Markdown."""
    header = [
        "sigma",
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
                *(with_error(level[key], "+.4f") for key in ("true", "wrong", "true_where_misclassified")),
                *(with_error(level[key], ".3%") for key in ("gain", "exact_gain")),
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
    return text_table(["identity of", "sigma", "float32 max", "relative", "float64 max", "relative"], rows)


def denoisers_figure(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    noise: Tensor,
    sigma: float,
    classes: Sequence[str],
    magnification: float | None = None,
    precision: str = "float32",
) -> tuple[Figure, float]:
    """Draw denoised images and their magnified differences around grey, one image per row.

    Captions are PSNR in dB, what the class changes in it, the root mean square of differences, and p(c | y).

    Args:
        model: a :class:`cdn.GradResNet`.
        x, labels, noise: the images to draw [N, C, H, W], their classes [N], and unit noise.
        sigma: noise level.
        classes: their names.
        magnification: of the differences; None for a round number at which three times the root mean square of
            those of the wrong class about fills the range.
        precision: "float32" or "bf16".

    Returns:
        (figure, magnification).
    """
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
            with_psnr(f"σ = {sigma_text(sigma)}", y, x),
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


def gains_figure(sigmas: Sequence[float], levels: Results) -> Figure:
    """Plot the paired differences of PSNR against the noise level, with two standard errors."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=1)
    for key, color, label in (("true", BLUE, "true class"), ("wrong", ORANGE, "most probable wrong class")):
        mean, error = zip(*(level[key] for level in levels.values()))
        axes.errorbar(
            sigmas,
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
    axes.set_xticks(sigmas, list(map(sigma_text, sigmas)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize=8)
    tidy(
        axes,
        title="What a class changes (± 2 standard errors)",
        xlabel="noise level σ (images in [0, 1])",
        ylabel="PSNR, difference to no class (dB)",
    )
    return figure
