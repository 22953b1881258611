"""The Jacobian of a denoiser: its spectrum, eigenvectors and effective dimension."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from cdn.files import Results
from cdn.methods.spectrum.lanczos import Eigenpairs
from cdn.model.inputs import sigma_text
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import BLUE, GREY, ORANGE, SEQUENCE, tidy
from cdn.pictures.tables import text_table


def dimension_table(results: Results) -> str:
    """Return trace, loss and asymmetry per noise level, as Markdown."""
    header = [
        "sigma",
        "tr J",
        "error of one image",
        "tr J / d",
        "loss",
        "loss - Stein",
        "loss - tr J / d",
        "asymmetry",
        "in float64",
    ]
    rows = []
    for grey, result in results.items():
        trace, error = result["trace"]
        loss, _ = result["loss"]
        per_value = loss - result["loss_minus_trace"][0]
        rows.append(
            [
                grey,
                f"{trace:.1f} ± {error:.1f}",
                f"{result['probe_error']:.1f}",
                f"{per_value:.4f}",
                f"{loss:.4f}",
                *("{:+.4f} ± {:.4f}".format(*result[key]) for key in ("loss_minus_stein", "loss_minus_trace")),
                f"{result['asymmetry']:.1e}",
                f"{result['asymmetry_float64']:.1e}",
            ]
        )
    return text_table(header, rows)


def spectrum_table(results: Results) -> str:
    """Return the ends of the spectrum and their checks per noise level, as Markdown."""
    header = [
        "sigma",
        "largest",
        "smallest",
        "residual",
        "products",
        "cosine of the first to y - D(y)",
        "Lanczos - dense",
        "exact trace",
        "Hutchinson",
    ]
    few = lambda values: None if values is None else " ".join(f"{value:.3f}" for value in values)
    small = lambda value: None if value is None else f"{value:.1e}"
    rows = [
        [
            grey,
            few(result["largest"]),
            few(result["smallest"]),
            small(result["residual"]),
            result["products"],
            result["cosine"],
            small(result["lanczos_error"]),
            result["exact_trace"],
            result["hutchinson"] and "{:.1f} ± {:.1f}".format(*result["hutchinson"]),
        ]
        for grey, result in results.items()
    ]
    return text_table(header, rows)


def eigenvectors_figure(pictures: Sequence[tuple[float, Tensor, Tensor, Eigenpairs]], largest: int) -> Figure:
    """Draw noisy image, denoised image and eigenvectors, one noise level per row.

    Eigenvectors are signed: 0 is grey, and each is scaled to fill the range. Captions are eigenvalues.
    """
    sigmas, noisy, denoised, pairs = zip(*pictures)
    vectors = torch.stack([found.vectors for found in pairs], 1)
    vectors = 0.5 + 0.5 * vectors / vectors.abs().amax((2, 3, 4), keepdim=True)
    captions = [
        [f"λ = {value:.3f}" for value in column]
        for column in torch.stack([found.values for found in pairs], 1).tolist()
    ]
    columns = [(f"{k + 1}{'' if k else ' (largest)'}", vectors[k], captions[k]) for k in range(largest)]
    last = [
        (f"d − {len(vectors) - 1 - k}" if k < len(vectors) - 1 else "d (smallest)", vectors[k], captions[k])
        for k in range(largest, len(vectors))
    ]
    groups: list[Sequence[tuple[str, Tensor, Sequence[str]]]] = [
        [("noisy", torch.cat(noisy), ()), ("denoised", torch.cat(denoised), ())],
        columns,
        last,
    ]
    return draw_grid([group for group in groups if group], [f"σ = {sigma_text(sigma)}" for sigma in sigmas])


def spectrum_figure(sigmas: Sequence[float], results: Results, size: int) -> Figure:
    """Plot the spectrum of one image per noise level, if any of it is known, and the effective dimension."""
    known = any(result["values"] or result["largest"] for result in results.values())
    figure = Figure(figsize=(9.6 if known else 4.8, 3.8), layout="constrained")
    *left, right = figure.subplots(1, 1 + known, squeeze=False)[0]
    for axes in left:
        _draw_spectrum(axes, results, size)
    _draw_dimension(right, sigmas, results, size)
    return figure


def _draw_spectrum(axes: Axes, results: Results, size: int) -> None:
    for number, (grey, result) in enumerate(results.items()):
        style: dict[str, Any] = dict(color=SEQUENCE[number % len(SEQUENCE)], label=f"σ = {grey}")
        if result["values"] is not None:
            axes.plot(range(1, size + 1), result["values"], linewidth=1.6, **style)
            style.pop("label")
        if result["largest"] is not None:
            ranks = [*range(1, len(result["largest"]) + 1), *range(size - len(result["smallest"]) + 1, size + 1)]
            axes.plot(ranks, result["largest"] + result["smallest"], "o", markersize=3, **style)
    eigen = any(result["largest"] for result in results.values())
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=8)
    tidy(
        axes,
        title="Spectrum of the Jacobian at one image" + (" (dots: Lanczos)" if eigen else ""),
        xlabel="rank",
        ylabel="eigenvalue" if eigen else "singular value",
    )


def _draw_dimension(axes: Axes, sigmas: Sequence[float], results: Results, size: int) -> None:
    trace, error = zip(*(result["trace"] for result in results.values()))
    loss = [size * result["loss"][0] for result in results.values()]
    axes.errorbar(
        sigmas,
        trace,
        [2 * e for e in error],
        fmt="o-",
        color=BLUE,
        markersize=4,
        capsize=3,
        label="trace (± 2 standard errors)",
    )
    axes.plot(sigmas, loss, "s--", color=ORANGE, markersize=4, label="|D(y) − x|² / σ², equal if exact")
    axes.set(xscale="log", ylim=(0, None))
    axes.set_xticks(sigmas, list(map(sigma_text, sigmas)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize=8)
    tidy(axes, title=f"Effective dimension, of {size}", xlabel="noise level σ (images in [0, 1])", ylabel="dimensions")
