"""Tables of text."""

import math
from collections.abc import Iterable, Mapping, Sequence


def text_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as Markdown, which a terminal shows well too.

    Args:
        header: names of the columns.
        rows: lists of cells: strings as they are, floats with 4 significant digits, None as a dash.
    """
    cells = [[_cell(value) for value in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "| "
        + " | ".join(
            text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths))
        )
        + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def record_table(records: Iterable[Mapping[str, object]]) -> str:
    """Return a table of records, dicts from the names of columns to cells, as :func:`text_table` does."""
    rows = list(records)
    return text_table(list(rows[0]), [list(row.values()) for row in rows])


def with_error(pair: Sequence[float], form: str) -> str:
    """Return [mean, standard error] as text, each in a format such as "+.2f"; a dash for nan."""
    return "-" if math.isnan(pair[0]) else f"{pair[0]:{form}} ± {pair[1]:{form.removeprefix('+')}}"
