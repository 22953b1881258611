"""Errors against the number of training images: bounds, measurements and fits."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure

from cdn.files import Results
from cdn.methods.learning_bounds import MEASURES, OBJECTIVES, Bound, Crossing, Curves, Fits, curves_of
from cdn.pictures.style import BLACK, BLUE, COLORS, GREEN, GREY, ORANGE, named, tidy
from cdn.pictures.tables import text_table


def bounds_figure(curves: dict[str, Bound], points: Iterable[Crossing], low: float, high: float) -> Figure:
    """Draw named bounds against n from low to high, with the crossings in between marked."""
    n = np.geomspace(low, high, 400)
    figure = Figure(figsize=(6.2, 4), layout="constrained")
    axes = figure.subplots()
    for color, (name, bound) in zip(np.resize(COLORS, len(curves)), curves.items()):
        axes.plot(n, bound(n), color=color, label=named(f"{name}: {bound.bias:g} + {bound.variance:g}/n"))
        axes.axhline(bound.bias, color=color, linewidth=0.8, linestyle=":")
    for _, _, crossed, error in points:
        if low <= crossed <= high:
            axes.plot(crossed, error, "o", color=BLACK, markersize=5, zorder=3)
            axes.annotate(f"n* = {crossed:.4g}", (crossed, error), (7, 7), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    tidy(axes, xlabel="training images n", ylabel="bound on the error", title="b + v/n, and b (dotted)")
    axes.legend(frameon=False, fontsize=8)
    return figure


OBJECTIVE_COLORS = dict(zip(OBJECTIVES, (BLUE, ORANGE, GREEN)))


def learning_figure(curves: dict[str, Curves], fits: dict[str, Fits], sizes: Sequence[int], title: str) -> Figure:
    """Draw the measured values of every seed, their means, and the fits (dashed), a panel per measure.

    Args:
        curves: for every measure a dict from the objective to (n, values), arrays of equal length.
        fits: for every measure a dict from the objective to dict(bias, variance, misfit).
        sizes: the numbers of training images.
        title: above all panels.
    """
    n = np.geomspace(min(sizes), max(sizes), 200)
    measures = [measure for measure in curves if curves[measure]]
    figure = Figure(figsize=(4.2 * len(measures), 3.6), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures):
        for objective, (x, y) in curves[measure].items():
            color = OBJECTIVE_COLORS[objective]
            axes.plot(x, y, ".", color=color, markersize=5, alpha=0.5)
            levels = np.unique(x)
            axes.plot(
                levels,
                [y[x == level].mean() for level in levels],
                "o-",
                color=color,
                markersize=4,
                linewidth=1.5,
                label=named(objective),
            )
            fit = fits[measure].get(objective)
            if fit:
                axes.plot(n, fit["bias"] + fit["variance"] / n, "--", color=color, linewidth=0.9)
        axes.plot([], [], "--", color=GREY, linewidth=0.9, label="fit of b + v/n")
        axes.set_xscale("log")
        tidy(axes, xlabel="training images n", title=MEASURES[measure])
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.tick_params(axis="x", which="minor", labelbottom=False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def learning_table(rows: Sequence[Results], objectives: Sequence[str], sizes: Sequence[int]) -> str:
    """Return one row per objective and size as text: means over the seeds."""
    cells: list[list[object]] = []
    for objective in objectives:
        for n in sizes:
            group = [row for row in rows if (row["objective"], row["n"]) == (objective, n)]
            curves = [curves_of(group, measure) for measure in MEASURES]
            means = [float(curve[objective][1].mean()) if curve else None for curve in curves]
            cells.append([objective, n, *means, sum(row["seconds"] for row in group)])
    return text_table(["objective", "images n", *MEASURES.values(), "seconds"], cells)


def fits_text(fits: dict[str, Fits], points: Sequence[Results], sizes: Sequence[int]) -> str:
    """Return a table of the fits, and a sentence for each crossing of them."""
    rows = [
        [MEASURES[measure], objective, fit["bias"], fit["variance"], f"{fit['misfit']:.0%}"]
        for measure in MEASURES
        for objective, fit in fits[measure].items()
    ]
    sentences = []
    for found in points:
        inside = "" if min(sizes) <= found["n"] <= max(sizes) else ", outside of what was measured"
        pair = f"{found['first']}, {found['second']}{inside}"
        sentences.append(f"fits of {MEASURES[found['measure']]} cross at n* = {found['n']:.4g}: {pair}")
    table = text_table(["fit of b + v/n", "objective", "b", "v", "misfit"], rows)
    return "\n".join([table, "", *(sentences or ["no two fits of the same measure cross"])])
