"""The table at the end of a run: for every case the library, each peer, and the floor."""

import statistics
import textwrap

from benchmarks.harness.timing import Ratio

_COLUMNS = ("", "median", "times the library", "times the floor", "peak memory")


def summary(results):
    """Return the lines at the end of a run: the table, the machine, and what a ratio is."""
    about = results[0]["machine"]
    machine = f"{about['device']}, {about['threads']} threads, {about['capability']}, torch {about['torch']}, Python "
    ratios = "medians of ratios within a round and the interval that holds the true one with 95 % probability"
    return [*table(results), "", f"{machine}{about['python']}; {ratios}"]


def table(results):
    """Return the lines of a table.

    Args:
        results: dicts with the fields of :class:`.paired.Result`.
    """
    rows = [row for result in results for row in _rows(result)]
    widths = [max(len(row[i]) for row in [_COLUMNS, *rows]) for i in range(len(_COLUMNS))]
    line = lambda row: "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    lines = [line(_COLUMNS)]
    for result in results:
        lines += ["", result["case"], *(line(row) for row in _rows(result))]
        for peer, reason in result["refused"].items():
            lines += textwrap.wrap(
                f"{peer}: refused: {' '.join(reason.split())}",
                110,
                initial_indent="  ",
                subsequent_indent="      ",
                max_lines=3,
            )
    return lines


def seconds_text(seconds):
    """Write a time with a unit that suits it."""
    unit, size = next((unit for unit in (("s", 1), ("ms", 1e-3)) if seconds >= unit[1]), ("us", 1e-6))
    return f"{seconds / size:.3g} {unit}"


def bytes_text(size):
    """Write a number of bytes in MiB."""
    return "not measured" if size is None else f"{size / 2**20:.0f} MiB" if size >= 2**20 else "< 1 MiB"


def _rows(result):
    for place, (name, seconds) in enumerate(result["seconds"].items()):
        floor = result["floor"]
        yield (
            "  " + name,
            seconds_text(statistics.median(seconds)),
            str(Ratio(*result["ratios"][name])) if place else "",
            Ratio(*floor["ratio"]).digits if floor and not place else "",
            bytes_text(result["peak_bytes"].get(name)),
        )
    if result["floor"]:
        floor = result["floor"]
        yield f"  floor: {' or '.join(floor['yardsticks'])}", seconds_text(floor["seconds"]), "", "", ""


def markdown(rows):
    """Return rows of text, the second of which is the rule under the first, as a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
