"""Small images in rows and columns, with titles and captions."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from cdn.evaluation.metrics import psnr
from cdn.pictures.style import GREY

# The layout, in units of one tile.
GAP, GROUP_GAP, CAPTION_HEIGHT, TITLE_HEIGHT, NAME_WIDTH = 0.08, 0.3, 0.22, 0.62, 0.85
INCHES = 0.95

# The title, the images [N, C, H, W] or N of their own sizes [C, H, W], and the captions.
Column = tuple[str, Tensor | Sequence[Tensor], Sequence[str]]


def draw_grid(groups: Sequence[Sequence[Column]], names: Sequence[str] = (), inches: float = INCHES) -> Figure:
    """Draw columns of images, in groups that are set apart.

    Args:
        groups: a list of groups; a group is a list of columns (title, images, captions): the title may have two
            lines; images [N, C, H, W], or N images of their own sizes, in [0, 1], clipped, C = 1 or 3; captions are N
            strings that stand below the tiles, or ().
        names: of the N rows, shortened to 11 letters; () for none.
        inches: side of a tile.

    Returns:
        A matplotlib figure, for :func:`cdn.pictures.style.save`.
    """
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    captioned = any(len(captions) for group in groups for _, _, captions in group)
    pitch = 1 + (CAPTION_HEIGHT if captioned else GAP)
    above = TITLE_HEIGHT if any(title for group in groups for title, _, _ in group) else GAP
    text = lambda x, y, string, **style: axes.text(x, y, string, fontsize=7.5, **style)
    for row, name in enumerate(names):
        text(-0.12, row * pitch + 0.5, _shorten(name), ha="right", va="center")
    left, rows = 0.0, 0
    for group in groups:
        for title, images, captions in group:
            text(left + 0.5, -0.08, title, ha="center", va="bottom", weight="bold")
            for row, tile in enumerate(images):
                _place(axes, tile.clamp(0, 1).cpu(), left, row * pitch)
            for row, caption in enumerate(captions):
                axes.text(left + 0.5, row * pitch + 1.02, caption, fontsize=6, color="#555555", ha="center", va="top")
            left += 1 + GAP
            rows = max(rows, len(images))
        left += GROUP_GAP
    margin = NAME_WIDTH if names else GAP
    width = left - GROUP_GAP + margin
    height = rows * pitch + above
    axes.set(xlim=(-margin, width - margin), ylim=(height - above, -above))
    figure.set_size_inches(inches * width, inches * height)
    return figure


def with_psnr(title: str, images: Tensor, x: Tensor) -> Column:
    """Return a column whose tiles carry their PSNR against x in dB, of unclipped images, and its title their mean."""
    values = psnr(images, x)
    return f"{title}\n{float(values.mean()):.2f} dB", images, [f"{value:.1f}" for value in values.tolist()]


def _place(axes: Axes, tile: Tensor, left: float, top: float) -> None:
    """Draw an image of any aspect, with a thin frame, centred in the unit square at (left, top)."""
    height, width = (size / max(tile.shape[1:]) for size in tile.shape[1:])
    x, y = left + (1 - width) / 2, top + (1 - height) / 2
    axes.imshow(
        tile.permute(1, 2, 0).numpy(),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(x, x + width, y + height, y),
    )
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=GREY, linewidth=0.5))


def _shorten(name: str, length: int = 11) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
