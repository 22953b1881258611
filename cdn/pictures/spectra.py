"""The Jacobian of a denoiser: its spectrum, eigenvectors and effective dimension."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cdn.files import Results
from cdn.methods.spectrum.lanczos import Eigenpairs
from cdn.model.inputs import sigma_text
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import BLUE, GREY, ORANGE, SEQUENCE, error_bars, sigma_axis, tidy
from cdn.pictures.tables import record_table


def dimension_table(results: Results) -> str:
    """Return trace, loss and asymmetry per noise level, as Markdown."""
    return record_table(
        {
            "sigma": sigma,
            "tr J": f"{found['trace'][0]:.1f} ± {found['trace'][1]:.1f}",
            "error of one image": f"{found['probe_error']:.1f}",
            "tr J / d": f"{found['loss'][0] - found['loss_minus_trace'][0]:.4f}",
            "loss": f"{found['loss'][0]:.4f}",
            "loss - Stein": "{:+.4f} ± {:.4f}".format(*found["loss_minus_stein"]),
            "loss - tr J / d": "{:+.4f} ± {:.4f}".format(*found["loss_minus_trace"]),
            "asymmetry": f"{found['asymmetry']:.1e}",
            "in float64": f"{found['asymmetry_float64']:.1e}",
        }
        for sigma, found in results.items()
    )


def spectrum_table(results: Results) -> str:
    """Return the ends of the spectrum and their checks per noise level, as Markdown."""
    few = lambda values: None if values is None else " ".join(f"{value:.3f}" for value in values)
    small = lambda value: None if value is None else f"{value:.1e}"
    return record_table(
        {
            "sigma": sigma,
            "largest": few(found["largest"]),
            "smallest": few(found["smallest"]),
            "residual": small(found["residual"]),
            "products": found["products"],
            "cosine of the first to y - D(y)": found["cosine"],
            "Lanczos - dense": small(found["lanczos_error"]),
            "exact trace": found["exact_trace"],
            "Hutchinson": found["hutchinson"] and "{:.1f} ± {:.1f}".format(*found["hutchinson"]),
        }
        for sigma, found in results.items()
    )


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
    title = "Spectrum of the Jacobian at one image" + (" (dots: Lanczos)" if eigen else "")
    tidy(axes, title=title, xlabel="rank", ylabel="eigenvalue" if eigen else "singular value")


def _draw_dimension(axes: Axes, sigmas: Sequence[float], results: Results, size: int) -> None:
    traces = [found["trace"] for found in results.values()]
    error_bars(axes, sigmas, traces, BLUE, "trace (± 2 standard errors)")
    loss = [size * found["loss"][0] for found in results.values()]
    axes.plot(sigmas, loss, "s--", color=ORANGE, markersize=4, label="|D(y) − x|² / σ², equal if exact")
    axes.set_ylim(0, None)
    sigma_axis(axes, sigmas, title=f"Effective dimension, of {size}", ylabel="dimensions")
