"""Accuracy under attacks, and certified accuracy, against the radius."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cdn.files import Results
from cdn.methods.smoothing.certificate import certified_accuracy
from cdn.model.inputs import sigma_text
from cdn.pictures.style import COLORS, SEQUENCE, named, tidy
from cdn.pictures.tables import text_table

TITLES = dict(linf="L-infinity", l2="L2")
# Radii are given and shown in these parts of the range from black to white.
UNITS = dict(linf=255, l2=1)


def curve_table(results: Results, norm: str) -> str:
    """Return the robust accuracy of every run at every radius in one norm, as text."""
    first, *_ = results["runs"].values()
    unit = "/255" if UNITS[norm] == 255 else ""
    header = [f"robust accuracy, {TITLES[norm]} radius", "0", *(f"{radius:g}{unit}" for radius in first[norm]["radii"])]
    return text_table(
        header,
        [
            [name, *(f"{value:.1%}" for value in [run[norm]["clean"], *run[norm]["robust"]])]
            for name, run in results["runs"].items()
        ],
    )


def verdict_table(results: Results, norms: Sequence[str]) -> str:
    """Return what the checks for gradient masking found, as text; a model that is always wrong has none."""
    rows = [
        [
            check["check"],
            TITLES[norm],
            f"{run[norm]['check_radius']:g}",
            name,
            "yes" if check["passed"] else "NO",
            check["measured"],
        ]
        for norm in norms
        for name, run in results["runs"].items()
        for check in run[norm]["checks"]
    ]
    return text_table(["no sign of masked gradients if", "norm", "radius", "run", "holds", "measured"], rows)


def robustness_figure(results: Results, norms: Sequence[str], title: str) -> Figure:
    """Draw robust accuracy against radius: a panel per norm, a line per run, with a standard error on either side."""
    figure = Figure(figsize=(4.8 * len(norms), 3.8), layout="constrained")
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms):
        for number, (name, run) in enumerate(results["runs"].items()):
            radius = [0, *run[norm]["radii"]]
            accuracy = torch.tensor([run[norm]["clean"], *run[norm]["robust"]])
            error = (accuracy * (1 - accuracy) / results["images"]).sqrt()
            color = COLORS[number % len(COLORS)]
            axes.plot(radius, accuracy, "o-", color=color, markersize=3.5, linewidth=1.5, label=named(name))
            axes.fill_between(radius, accuracy - error, accuracy + error, color=color, alpha=0.15, linewidth=0)
        unit = "grey levels of 255" if UNITS[norm] == 255 else "white is 1"
        tidy(axes, title=TITLES[norm], xlabel=f"radius ({unit})", ylabel="robust accuracy")
        axes.set(xlim=(0, _end([run[norm] for run in results["runs"].values()])), ylim=(0, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title}, {results['images']} images", fontsize=10)
    return figure


def _end(curves: Sequence[Results]) -> float:
    """Return where the axis of radii may end: at the first where nothing is left of any curve, if there is one."""
    radii = curves[0]["radii"]
    gone = [radius for k, radius in enumerate(radii) if not any(curve["robust"][k] for curve in curves)]
    return gone[0] if gone else radii[-1]


# Noise levels go from blue to red; the first colour of the sequence is that of clean images.
LEVEL_COLORS = SEQUENCE[1:]


def certified_figure(results: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw certified accuracy against radius: a panel per run with a curve per noise level, and all runs at their best.

    Args:
        results: a list of dicts with ``run`` (a name), ``sigma``, and ``labels``, ``predicted`` and ``radii`` of its
            images.
        title: of the figure.

    Returns:
        A matplotlib figure, for :func:`cdn.pictures.style.save`.
    """
    runs = list(dict.fromkeys(result["run"] for result in results))
    panels = len(runs) + (len(runs) > 1)
    figure = Figure(figsize=(max(3.6 * panels, 5.2), 3.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0]
    end = 1.05 * max([max(result["radii"]) for result in results] + [0.1])
    grid = np.linspace(0, end, 500)
    sigmas = sorted({result["sigma"] for result in results})
    colors = {sigma: LEVEL_COLORS[k % len(LEVEL_COLORS)] for k, sigma in enumerate(sigmas)}
    curve = lambda result: 100 * certified_accuracy(result["labels"], result["predicted"], result["radii"], grid)
    for panel, run in zip(axes, runs):
        for result in results:
            if result["run"] == run:
                panel.plot(
                    grid,
                    curve(result),
                    color=colors[result["sigma"]],
                    label=f"σ = {sigma_text(result['sigma'])}",
                    linewidth=1.5,
                )
        tidy(panel, title=run, xlabel="radius (L2, images in [0, 1])")
        panel.legend(frameon=False, fontsize=8)
    for number, run in enumerate(runs if panels > len(runs) else ()):
        best = np.max([curve(result) for result in results if result["run"] == run], axis=0)
        axes[-1].plot(grid, best, label=named(run), color=f"C{number}", linewidth=1.5)
        tidy(axes[-1], title="best σ at each radius", xlabel="radius (L2, images in [0, 1])")
        axes[-1].legend(frameon=False, fontsize=8)
    axes[0].set(ylabel="certified accuracy (%)", ylim=(0, 101), xlim=(0, end))
    return figure


def certified_table(results: Sequence[Results]) -> str:
    """Return certified accuracy by run and noise level; radii that no certificate could reach are shown as a dash."""
    percent = lambda result, radius, share: f"{100 * share:.1f}" if float(radius) <= result["largest_radius"] else None
    rows = [
        [
            result["run"],
            sigma_text(result["sigma"]),
            *(percent(result, radius, share) for radius, share in result["certified_accuracy"].items()),
            f"{100 * result['abstained']:.1f}",
            f"{result['average_radius']:.3f}",
            f"{result['samples_per_second']:.0f}",
            f"{result['seconds']:.0f}",
        ]
        for result in results
    ]
    radii = results[0]["certified_accuracy"]
    return text_table(["run", "sigma", *radii, "abstained", "mean radius", "samples/s", "seconds"], rows)
