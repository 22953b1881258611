"""The style of all pictures, and how they are written."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdn.errors import CDNError
from cdn.files import write_atomically
from cdn.model.inputs import sigma_text

if TYPE_CHECKING:  # commands that draw nothing need not wait for matplotlib
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

BLUE, ORANGE, GREEN, RED, BLACK, GREY = "#3465a4", "#d9772b", "#2f9e8f", "#b03a5b", "#1b1b1b", "#9aa0a6"
# Things to tell apart, the first of them the main one.
COLORS = BLUE, ORANGE, GREEN, RED, BLACK
# From clean to ever stronger noise.
SEQUENCE = BLACK, BLUE, GREEN, ORANGE, RED
SUFFIXES = (".png", ".pdf", ".svg")
# Fonts of many scripts, of which a system may have some, for letters that the usual one lacks.
FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Hiragino Sans",
    "PingFang SC",
    "Arial Unicode MS",
    "Unifont",
)
# Matplotlib leaves labels that begin with an underscore out of legends. This character, which has no width, is put
# before labels, and removed when the figure is saved.
_SHOWN = "\u2060"


def tidy(axes: "Axes", **labels: Any) -> None:
    """Set titles and labels, and drop the frame but for the two axes."""
    axes.set(**labels)
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def sigma_axis(axes: "Axes", sigmas: Sequence[float], **labels: Any) -> None:
    """Let noise levels run along the x axis, each with its name, and tidy up."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.set_xticks(sigmas, list(map(sigma_text, sigmas)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize=8)
    tidy(axes, xlabel="noise level σ (images in [0, 1])", **labels)


def error_bars(axes: "Axes", x: Sequence[float], pairs: Iterable[Sequence[float]], color: str, label: str) -> None:
    """Draw means [mean, standard error] against x, with two standard errors on either side."""
    mean, error = zip(*pairs)
    twice = [2 * e for e in error]
    axes.errorbar(x, mean, twice, fmt="o-", color=color, markersize=4, linewidth=1.4, capsize=3, label=named(label))


def named(text: str) -> str:
    """Return a text as a label that legends show even if it begins with an underscore, as names of runs may."""
    return _SHOWN + text


def save(figure: "Figure", path: str | Path, dpi: float = 150) -> None:
    """Write a matplotlib figure atomically, in the format that the suffix names.

    All text of it is drawn as it is, for it may be the names of folders: no formulas, no TeX, and letters that no font
    has as escapes. Numbers at the axes alone may have powers.

    Raises:
        CDNError: another suffix than .png, .pdf or .svg, a figure that matplotlib cannot draw, or the file cannot be
            written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise CDNError(f"{path}: expected a picture ending in {', '.join(SUFFIXES)}, got {suffix or 'no suffix'!r}")
    data = BytesIO()
    try:
        with _plain_text(figure):
            figure.savefig(data, format=suffix[1:], dpi=dpi)
    except Exception as error:
        raise CDNError(f"{path} could not be drawn: {type(error).__name__}: {error}") from error
    write_atomically(path, data.getvalue())


def attempt(draw: Callable[[], object], path: Path, say: Callable[[str], object] | None = None) -> bool:
    """Draw a picture and return True; where that fails, print a line and return False, so that no result is lost by it.

    Args:
        draw: draws it and writes it.
        path: where to.
        say: a function that prints a line; by default on stderr.
    """
    try:
        draw()
        return True
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        line = f"note: there is no {path}: {cause}"
        say(line) if say else print(line, file=sys.stderr)
        return False


@contextlib.contextmanager
def _plain_text(figure: "Figure") -> Iterator[None]:
    """Have all text of a figure drawn letter by letter, without formulas or TeX, whatever the settings of the user."""
    import matplotlib
    from matplotlib.text import Text

    families = _families()
    with matplotlib.rc_context({"text.usetex": False, "text.parse_math": True, "font.family": list(families)}):
        numbers = {text for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in _numbers(axis)}
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            text.set_usetex(False)
            text.set_fontfamily(list(families))
            text.set_parse_math(text in numbers)
            text.set_text(_letters(text.get_text(), families))
        yield


def _numbers(axis: "Axis") -> "list[Text]":
    """Return the labels of an axis that are numbers, and let those that are names be drawn as letters."""
    from matplotlib.category import StrCategoryFormatter
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    names = axis.get_major_formatter()
    ticks = [*axis.get_minor_ticks(), *axis.get_major_ticks()]
    if isinstance(names, (FixedFormatter, FuncFormatter, StrCategoryFormatter)):
        families = _families()
        axis.set_major_formatter(FuncFormatter(lambda x, position: _letters(str(names(x, position)), families)))
        ticks = axis.get_minor_ticks()
    return [axis.offsetText, *(label for tick in ticks for label in (tick.label1, tick.label2))]


def _families() -> tuple[str, ...]:
    """Return the families of fonts to look for a letter in, one after the other."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return (*matplotlib.rcParams["font.family"], *(name for name in FALLBACKS if name in installed))


def _letters(text: str, families: tuple[str, ...]) -> str:
    """Return a text with escapes in the place of letters that no font has; bytes that are no letters are among them."""
    known = _glyphs(families)
    drawn = lambda letter: letter == "\n" or ord(letter) in known
    return "".join(letter if drawn(letter) else _escape(letter) for letter in text.replace(_SHOWN, ""))


def _escape(letter: str) -> str:
    byte = ord(letter) - 0xDC00  # as Python reads bytes of file names that are no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else letter.encode("unicode_escape").decode()


@functools.lru_cache(maxsize=8)
def _glyphs(families: tuple[str, ...]) -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    paths = {findfont(FontProperties(family=[family])) for family in families}
    return frozenset().union(*(get_font(path).get_charmap() for path in paths))
