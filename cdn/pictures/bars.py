"""Bars side by side."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from cdn.pictures.style import named

# Of the bars of a group, and from one to the next.
WIDTH, PITCH = 0.25, 0.27


def grouped_bars(
    axes: Axes,
    groups: Mapping[str, Sequence[float | None]],
    places: Sequence[str],
    colors: Sequence[str],
    *,
    horizontal: bool = False,
) -> None:
    """Draw a group of bars at every place, one of each kind; upright bars carry their values.

    Args:
        axes: where to draw.
        groups: for every kind, which the legend names, its values at the places; None for no bar.
        places: names of the places.
        colors: of the kinds.
        horizontal: whether the bars lie, the first place on top.
    """
    for k, (kind, values) in enumerate(groups.items()):
        known = [(place, value) for place, value in enumerate(values) if value is not None]
        at = [place + PITCH * (k - (len(groups) - 1) / 2) for place, _ in known]
        lengths = [value for _, value in known]
        if horizontal:
            axes.barh(at, lengths, WIDTH, color=colors[k], label=named(kind))
        else:
            axes.bar_label(axes.bar(at, lengths, WIDTH, color=colors[k], label=named(kind)), fmt="%.0f", fontsize=7)
    if horizontal:
        axes.set_yticks(range(len(places)), places)
        axes.invert_yaxis()
    else:
        axes.set_xticks(range(len(places)), places)
