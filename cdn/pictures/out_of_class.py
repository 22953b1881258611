"""Reconstructions of images that a generator was not trained on, and what tells them apart."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cdn.evaluation.metrics import psnr
from cdn.files import Results
from cdn.methods.synthesis.outside import (
    BOTH,
    ENERGY,
    ERROR,
    FITTED,
    FREE,
    GIVEN,
    INSIDE,
    MADE,
    PRIOR,
    TRAINING,
    Made,
    Sets,
)
from cdn.pictures.bars import grouped_bars
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import GREY, SEQUENCE, named, tidy
from cdn.pictures.tables import text_table

SHOWN = 4


def error_table(results: Results) -> str:
    """Return how well each set is reconstructed by each search, as text."""
    searches = results["searches"]
    return text_table(
        ["PSNR of reconstructions (dB)", *searches],
        [[name, *(f"{searches[search][name]['psnr']:.1f}" for search in searches)] for name in searches[FREE]],
    )


def detection_table(results: Results) -> str:
    """Return the AUROC of every detector for every set from outside, as text."""
    columns = [(search, detector) for search, found in results["searches"].items() for detector in _detectors(search)]
    sets = [name for name, found in results["searches"][FREE].items() if "auroc" in found]
    return text_table(
        ["AUROC", *(detector if detector == GIVEN else f"{detector}, {search}" for search, detector in columns)],
        [
            [name, *(f"{results['searches'][search][name]['auroc'][detector]:.3f}" for search, detector in columns)]
            for name in sets
        ],
    )


def detection_figure(results: Results) -> Figure:
    """Draw for every set the PSNR by each search, and the AUROC of the detectors before and after the remedies."""
    searches = results["searches"]
    sets = [name for name in searches[FREE] if name != TRAINING]
    outside = [name for name in sets if name != INSIDE]
    figure = Figure(figsize=(12, 1.6 + 0.42 * len(sets)), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = {search: [found[name]["psnr"] for name in sets] for search, found in searches.items()}
    grouped_bars(left, groups, sets, SEQUENCE, horizontal=True)
    tidy(left, title="PSNR of reconstructions, by the density of the latent", xlabel="dB")
    shown = [(FREE, ERROR), (PRIOR, ENERGY), (FITTED, ENERGY), (FREE, GIVEN), (FREE, MADE), (FREE, BOTH)]
    for k, (search, detector) in enumerate(shown):
        label = detector if detector == GIVEN else f"{detector}, {search}"
        values = [searches[search][name]["auroc"][detector] for name in outside]
        right.scatter(
            values,
            [place + 0.1 * (k - 2.5) for place in range(len(outside))],
            s=28,
            zorder=3,
            color=(*SEQUENCE, GREY)[k],
            marker="os^Dv*"[k],
            label=named(label),
        )
    right.axvline(0.5, color=GREY, linewidth=1, linestyle="--")
    right.set_yticks(range(len(outside)), outside)
    tidy(right, title="telling it from inside", xlabel="AUROC (0.5: not at all)", xlim=(-0.03, 1.03))
    right.invert_yaxis()
    for axes in (left, right):
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles, labels, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    return figure


def search_figure(sets: Sets, made: Made) -> Figure:
    """Draw a row of images for every set, each beside what every search makes of it, with its PSNR in dB."""
    names = [name for name in sets if name != TRAINING]
    groups = []
    for k in range(min(SHOWN, *(len(sets[name]) for name in names))):
        images = torch.stack([sets[name][k] for name in names])
        columns: list[tuple[str, Tensor, Sequence[str]]] = [("image", images, ())]
        for search, found in made.items():
            tiles = torch.stack([found[name][0][k] for name in names])
            columns.append((search, tiles, [f"{value:.1f}" for value in psnr(images, tiles).tolist()]))
        groups.append(columns)
    return draw_grid(groups, [name.split()[0] for name in names])


def _detectors(search: str) -> tuple[str, ...]:
    return (ERROR, GIVEN, MADE, BOTH) if search == FREE else (ERROR, ENERGY, MADE)
