"""The looks that all pictures share, and how they reach the disk."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdn.errors import CDNError
from cdn.store import write_atomically

if TYPE_CHECKING:  # commands that draw nothing need not wait for matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, BLACK, GREY = "#3465a4", "#d9772b", "#2f9e8f", "#b03a5b", "#1b1b1b", "#9aa0a6"
# Things to tell apart, the first of them the main one.
COLORS = BLUE, ORANGE, GREEN, RED, BLACK
# From clean to ever stronger noise.
SEQUENCE = BLACK, BLUE, GREEN, ORANGE, RED
SUFFIXES = (".png", ".pdf", ".svg")


def tidy(axes: "Axes", **labels: Any) -> None:
    """Set titles, labels and what else ``Axes.set`` takes, and drop the frame but for the two axes."""
    axes.set(**labels)
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def save(figure: "Figure", path: str | Path, dpi: float = 150) -> None:
    """Write a matplotlib figure atomically, in the format that the suffix names.

    Raises:
        CDNError: another suffix than .png, .pdf or .svg, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise CDNError(f"{path}: expected a picture ending in {', '.join(SUFFIXES)}, got {suffix or 'no suffix'!r}")
    data = BytesIO()
    figure.savefig(data, format=suffix[1:], dpi=dpi)
    write_atomically(path, data.getvalue())
