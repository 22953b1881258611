"""What a class changes in denoised images: tables, images, and gains against the noise level."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor, nn

from cdn.evaluation.metrics import psnr
from cdn.files import Results
from cdn.methods.class_conditional import adversarial_gradient, denoise_with_classes, round_down
from cdn.model.inputs import sigma_text
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid, with_psnr
from cdn.pictures.style import BLUE, GREY, ORANGE, error_bars, sigma_axis
from cdn.pictures.tables import record_table, text_table, with_error


def gains_table(levels: Results) -> str:
    """Return the PSNR per noise level and what classes change, as Markdown."""
    return record_table(
        {
            "sigma": sigma,
            "accuracy": f"{level['accuracy']:.1%}",
            "noisy dB": f"{level['psnr_noisy']:.2f}",
            "no class dB": f"{level['psnr_unconditional']:.3f}",
            "true class dB": with_error(level["true"], "+.4f"),
            "wrong class dB": with_error(level["wrong"], "+.4f"),
            "true, misclassified dB": with_error(level["true_where_misclassified"], "+.4f"),
            "error lowered by": with_error(level["gain"], ".3%"),
            "if exact, by": with_error(level["exact_gain"], ".3%"),
        }
        for sigma, level in levels.items()
    )


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
    wrong = denoised.wrong_label
    columns: list[Sequence[tuple[str, Tensor | Sequence[Tensor], Sequence[str]]]] = [
        [("clean", x, ())],
        [
            with_psnr(f"σ = {sigma_text(sigma)}", y, x),
            with_psnr("no class", denoised.unconditional, x),
            named("true class", denoised.true, labels),
            named("wrong class", denoised.wrong, wrong),
        ],
        [
            (f"true − none\n× {magnification:g}", shown(differences[0]), size(differences[0])),
            (f"wrong − none\n× {magnification:g}", shown(differences[1]), size(differences[1])),
        ],
        [
            (f"∇log p(true)\n× {magnification:g}σ²", shown(sigma**2 * gradients[0]), probability(labels)),
            (f"∇log p(wrong)\n× {magnification:g}σ²", shown(sigma**2 * gradients[1]), probability(wrong)),
        ],
    ]
    return draw_grid(columns, [classes[label] for label in labels.tolist()]), magnification


def gains_figure(sigmas: Sequence[float], levels: Results) -> Figure:
    """Plot the paired differences of PSNR against the noise level, with two standard errors."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=1)
    for key, color, label in (("true", BLUE, "true class"), ("wrong", ORANGE, "most probable wrong class")):
        error_bars(axes, sigmas, [level[key] for level in levels.values()], color, label)
    title, ylabel = "What a class changes (± 2 standard errors)", "PSNR, difference to no class (dB)"
    sigma_axis(axes, sigmas, title=title, ylabel=ylabel)
    return figure
