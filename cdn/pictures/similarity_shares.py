"""Accuracies by similarity, and reconstructions by class."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from cdn.methods.distances.by_similarity import JUDGED, NAMES, NEIGHBOUR, SEARCHED, Shares
from cdn.methods.distances.dissimilarity import PIXELS
from cdn.methods.synthesis import Inference
from cdn.pictures.bars import grouped_bars
from cdn.pictures.grid import draw_grid
from cdn.pictures.style import BLUE, GREY, ORANGE, tidy
from cdn.pictures.tables import text_table

ROWS = 6


def shares_table(shares: Shares) -> str:
    """Return the accuracies as text: a row per similarity, a column per way and kind of image."""
    kinds = list(shares[JUDGED][PIXELS])
    cell = lambda way, name, kind: f"{shares[way][name][kind]:.1%}" if name in shares[way] else None
    return text_table(
        ["accuracy", *(f"{way}, {kind}" for way in shares for kind in kinds)],
        [[name, *(cell(way, name, kind) for way in shares for kind in kinds)] for name in NAMES],
    )


def shares_figure(shares: Shares, count: int) -> Figure:
    """Draw the accuracies: a panel per way, a group of bars per similarity."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    titles = {
        JUDGED: "most similar reconstruction,\nfound by pixels",
        NEIGHBOUR: "most similar training image\n",
        SEARCHED: "best explanation, searched by\nthe similarity and the latent's density",
    }
    kinds = list(shares[JUDGED][PIXELS])
    panels = figure.subplots(1, 3, sharey=True)
    for axes, way in zip(panels, shares):
        share = lambda name, kind, way=way: 100 * shares[way][name][kind] if name in shares[way] else None
        groups = {kind: [share(name, kind) for name in NAMES] for kind in kinds}
        grouped_bars(axes, groups, NAMES, (GREY, BLUE, ORANGE))
        tidy(axes, title=titles[way])
        axes.set(xlim=(-0.5, len(NAMES) - 0.5), ylim=(0, 112))
    panels[0].set_ylabel(f"accuracy (%), {count} images")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=8)
    return figure


def classes_figure(
    kinds: dict[str, Tensor], found: dict[str, Inference], labels: Tensor, classes: Sequence[str]
) -> Figure:
    """Draw images of every kind, the reconstruction of their own class and that of the next one."""
    rows = range(min(ROWS, len(labels)))
    groups = []
    for kind, images in kinds.items():
        made = found[kind].reconstructions
        wrong = (labels + 1) % made.shape[1]
        groups.append(
            [
                (kind, images[:ROWS], ()),
                ("own\nclass", made[rows, labels[rows]], ()),
                ("another\nclass", made[rows, wrong[rows]], [classes[c] for c in wrong[:ROWS].tolist()]),
            ]
        )
    return draw_grid(groups, [classes[c] for c in labels[:ROWS].tolist()])
