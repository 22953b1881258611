"""Certified accuracy against radius, as numbers and as a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from cdn.pictures.style import SEQUENCE, named, tidy

# Noise levels go from blue to red; the first colour of the sequence is that of clean images.
COLORS = SEQUENCE[1:]


def certified_accuracy(labels: ArrayLike, predicted: ArrayLike, radii: ArrayLike, radius: ArrayLike) -> np.ndarray:
    """Return the share of images that are classified rightly with a certificate of at least so large a radius.

    Args:
        labels: int [N], the true classes.
        predicted: int [N], those of the certificates, -1 for abstention.
        radii: float [N], of the certificates.
        radius: a number, or an array [R].

    Returns:
        A share in [0, 1] for each radius. At 0 it is the accuracy of the smoothed classifier, abstentions being errors.
    """
    right = np.where(np.equal(labels, predicted), radii, -np.inf)
    return (right >= np.expand_dims(radius, -1)).mean(-1)


def curves_figure(results: Sequence[dict[str, Any]], title: str) -> Figure:
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
    colors = {sigma: COLORS[k % len(COLORS)] for k, sigma in enumerate(sigmas)}
    curve = lambda result: 100 * certified_accuracy(result["labels"], result["predicted"], result["radii"], grid)
    for panel, run in zip(axes, runs):
        for result in results:
            if result["run"] == run:
                panel.plot(
                    grid, curve(result), color=colors[result["sigma"]], label=f"σ = {result['sigma']:g}", linewidth=1.5
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
