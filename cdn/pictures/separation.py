"""How well ratings tell inliers from outliers: tables, histograms and ROC curves."""

import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve
from torch import Tensor

from cdn.files import Results
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import BLUE, GREY, SEQUENCE, named, tidy
from cdn.pictures.tables import text_table

FIGURES = {"auroc": "AUROC", "aupr_in": "AUPR in", "aupr_out": "AUPR out", "fpr95": "FPR95"}
BINS = 60
INLIERS = "inliers"
# Images by the name of the set; ratings [N] by noise level, set and detector.
Sets = dict[str, Tensor]
Ratings = dict[str, dict[str, dict[str, Tensor]]]


def sets_figure(inliers: Tensor, sets: Sets) -> Figure:
    """Draw some inliers, and some outliers of each set."""
    outside = [(name.replace(" ", "\n"), images[:6], ()) for name, images in sets.items()]
    return draw_grid([[(INLIERS, inliers[:6], ())], outside])


def overview(results: Results) -> str:
    """Return a table of AUROC: a row per set, a column per noise level and detector."""
    first = next(iter(results.values()))
    names = list(next(iter(first.values())))
    header = ["AUROC", *(f"{detector}, {level}" for level in results for detector in names)]
    return text_table(
        header,
        [
            [name, *(f"{results[level][name][detector]['auroc']:.3f}" for level in results for detector in names)]
            for name in first
        ],
    )


def details(results: Results) -> str:
    """Return a table of all figures: a row per set and detector, a column per noise level and figure."""
    header = ["outliers", "detector", *(f"{figure}, {level}" for level in results for figure in FIGURES.values())]
    first = next(iter(results.values()))
    return text_table(
        header,
        [
            [name, detector, *(f"{results[level][name][detector][key]:.3f}" for level in results for key in FIGURES)]
            for name in first
            for detector in first[name]
        ],
    )


def ratings_figure(ratings: Ratings) -> Figure:
    """Draw, per noise level and detector, the histogram of each set of outliers before that of the inliers."""
    first = next(iter(ratings.values()))
    sets, detectors = [name for name in first if name != INLIERS], list(first[INLIERS])
    figure = Figure(
        figsize=(1.4 + 2.6 * len(detectors), 1 + len(ratings) * (0.5 + 0.27 * len(sets))), layout="constrained"
    )
    panels = figure.subplots(len(ratings), len(detectors), squeeze=False, sharey=True)
    for row, (level, rated) in zip(panels, ratings.items()):
        for axes, detector in zip(row, detectors):
            inliers = rated[INLIERS][detector]
            edges = _edges(inliers, torch.cat([values[detector] for values in rated.values()]))
            for position, name in enumerate(sets):
                for values, color, alpha in ((inliers, GREY, 0.6), (rated[name][detector], BLUE, 0.7)):
                    heights = torch.histogram(values.clamp(edges[0], edges[-1]), edges).hist
                    axes.stairs(
                        (heights / heights.max() * 0.85 - position).numpy(),
                        edges.numpy(),
                        baseline=-position,
                        fill=True,
                        color=color,
                        alpha=alpha,
                    )
            tidy(
                axes,
                title=f"{detector}, {level}",
                yticks=[-i for i in range(len(sets))],
                yticklabels=sets,
                xlim=(float(edges[0]), float(edges[-1])),
            )
            axes.grid(visible=False)
            axes.locator_params(axis="x", nbins=5)
            axes.tick_params(axis="x", labelsize=6.5)
    figure.supxlabel(
        "rating (grey: inliers, blue: outliers; what is beyond an end is counted in its last bin)", fontsize=9
    )
    return figure


def roc_figure(ratings: Ratings, results: Results) -> Figure:
    """Draw a panel per set of outliers: a curve per detector, solid for clean images and dashed for noisy ones."""
    first = next(iter(results.values()))
    sets, detectors = list(first), list(next(iter(first.values())))
    columns = min(6, len(sets))
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(2.1 * columns, 0.7 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, name in zip(panels, sets):
        for (level, rated), style in zip(ratings.items(), ("-", "--")):
            for detector, color in zip(detectors, SEQUENCE[1:]):
                inliers, outliers = rated[INLIERS][detector], rated[name][detector]
                inside = torch.cat([torch.ones(len(inliers)), torch.zeros(len(outliers))])
                false, true, _ = roc_curve(inside, torch.cat([inliers, outliers]))
                axes.plot(false, true, style, color=color, linewidth=1.3, label=named(f"{detector}, {level}"))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        tidy(axes, title=name)
    for axes in panels[: len(sets)][-columns:]:
        axes.set_xlabel("outliers that pass", fontsize=8)
        axes.tick_params(labelbottom=True)
    for axes in panels[::columns]:
        axes.set_ylabel("inliers that pass", fontsize=8)
    for axes in panels[len(sets) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(detectors), fontsize=8, frameon=False)
    return figure


def _edges(inliers: Tensor, ratings: Tensor) -> Tensor:
    """Return the edges of bins that show the inliers, and on either side as much again where there is something."""
    low, high = torch.quantile(inliers, torch.tensor([0.005, 0.995], dtype=inliers.dtype)).tolist()
    margin = max(high - low, 1e-9)
    return torch.linspace(
        max(low - margin, float(ratings.min())),
        min(high + margin, float(ratings.max())) + 1e-9,
        BINS + 1,
        dtype=inliers.dtype,
    )
