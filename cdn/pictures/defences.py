"""Accuracies of classifiers that are defended, or that judge by denoising: tables, bars and images."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from cdn.files import Results
from cdn.methods.judges import ERROR, SOFTMAX
from cdn.methods.smoothing.defences import ALONE, DENOISED, ITSELF
from cdn.methods.smoothing.protected import Protected
from cdn.model.inputs import sigma_text
from cdn.pictures.bars import grouped_bars
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import BLUE, GREY, ORANGE, SEQUENCE, named, tidy
from cdn.pictures.tables import text_table
from cdn_kernels import Noise, sample_noise


def defence_table(results: Results, radii: Sequence[float]) -> str:
    """Return accuracies of all systems, and certified ones by radius, as text."""
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


def defence_figure(results: Results, sigma: float, norm: str, radius: float) -> Figure:
    """Draw accuracies side by side, and certified accuracy against radius."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    kinds = {"clean": "clean", "images that fool it alone": "transferred", "images made for each": "attacked"}
    groups = {label: [100 * result[key] for result in results.values()] for label, key in kinds.items()}
    grouped_bars(left, groups, list(results), (GREY, BLUE, ORANGE))
    _title(left, norm, radius)
    for name, color in zip((ALONE, DENOISED, ITSELF), SEQUENCE[::2]):
        shares = results.get(name, {}).get("certified") or {}
        points = [(float(radius), 100 * share) for radius, share in shares.items() if share is not None]
        if points:
            right.plot(*zip(*points), "o-", color=color, label=named(name), markersize=4)
            right.legend(frameon=False, fontsize=8)
    tidy(right, title=f"certified accuracy (%), σ = {sigma_text(sigma)}", xlabel="radius (L2, images in [0, 1])")
    right.set_ylim(0, 101)
    return figure


def accuracy_table(results: Results) -> str:
    """Return the accuracies of all classifiers on all sets of images, as text."""
    kinds = list(results["accuracy"][SOFTMAX])
    return text_table(
        ["accuracy", *kinds],
        [[name, *(f"{shares[kind]:.1%}" for kind in kinds)] for name, shares in results["accuracy"].items()],
    )


def level_table(results: Results) -> str:
    """Return the accuracies at every noise level by itself, as text."""
    rows = zip(results["sigma"], *results["by_level"].values())
    return text_table(
        ["at sigma alone", ERROR, "softmax, same noise"],
        [[f"{sigma:.3f}", *(f"{share:.1%}" for share in shares)] for sigma, *shares in rows],
    )


def draw_table(results: Results) -> str:
    """Return the accuracy of the integrated error by the number of draws per level, as text."""
    found = results["by_draws"]
    return text_table(["draws per level", *found["draws"]], [[ERROR, *(f"{share:.1%}" for share in found["accuracy"])]])


def judges_figure(results: Results, norm: str, radius: float, nodes: int, drawn: int) -> Figure:
    """Draw accuracy by kind of image, by noise level, and by number of draws."""
    figure = Figure(figsize=(12.5, 3.7), layout="constrained")
    bars, levels, draws = figure.subplots(1, 3, width_ratios=(5, 4, 3))
    groups = {name: [100 * share for share in shares.values()] for name, shares in results["accuracy"].items()}
    kinds = [kind.replace(", ", ",\n") for kind in results["accuracy"][SOFTMAX]]
    grouped_bars(bars, groups, kinds, (GREY, BLUE, ORANGE))
    _title(bars, norm, radius)
    for name, color, label in ((ERROR, ORANGE, ERROR), (SOFTMAX, SEQUENCE[0], "softmax of the same noisy images")):
        levels.plot(results["sigma"], results["by_level"][name], "o-", color=color, markersize=4, label=named(label))
    levels.set_xscale("log")
    tidy(levels, title=f"each noise level by itself, {drawn} draws", xlabel="σ (images in [0, 1])")
    found, clean = results["by_draws"], results["accuracy"][SOFTMAX]["clean"]
    draws.plot(found["draws"], found["accuracy"], "o-", color=ORANGE, markersize=4, label=named(ERROR))
    draws.axhline(clean, color=SEQUENCE[0], linewidth=1, linestyle="--", label="softmax of clean images")
    draws.set_xscale("log", base=2)
    draws.set_xticks(found["draws"], found["draws"])
    tidy(draws, title=f"all {nodes} levels together", xlabel="draws of noise per level")
    for axes in (levels, draws):
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False, fontsize=8, loc="lower center")
    return figure


def purified_figure(made: Mapping[str, Tensor], protected: Protected, noise: Noise) -> Figure:
    """Draw images by their title, the same with noise, and what a protected classifier then sees."""
    columns = []
    for title, images in made.items():
        noisy, _ = sample_noise(images, protected.sigma, noise)
        with torch.no_grad():
            columns.append([(title, images, ()), ("noisy", noisy, ()), ("denoised", protected.purify(noisy), ())])
    return draw_grid(columns)


def _title(axes: Axes, norm: str, radius: float) -> None:
    tidy(axes, title=f"accuracy (%), attacks in {norm.replace('l', 'L')} of radius {radius:g}")
    axes.set_ylim(0, 119)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
