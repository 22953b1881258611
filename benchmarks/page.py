"""Write docs/performance.md and its plots from recorded runs of the benchmarks.

    pytest benchmarks/ --benchmark-only --benchmark-json benchmarks/results/cpu.json
    python -m benchmarks.page benchmarks/results/cpu.json [more.json ...] [--out docs]

Where several files have the same case, the last one counts.
"""
import argparse
import statistics
from pathlib import Path

from .harness.plots import scaling_plots
from .harness.record import Record, read
from .harness.table import bytes_text, seconds_text

LESSONS = Path(__file__).parent / "lessons.md"
EAGER = "eager, channels last", "eager, contiguous"
CLASSIFIER, UNITS = "(eager step of a classifier)", "(its convolutions alone, by PyTorch)"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER")
    args = parser.parse_args(argv)
    records = [read(path) for path in args.runs]
    merged = Record(records[-1].date, records[-1].machine, {k: v for r in records for k, v in r.results.items()})
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    pictures = scaling_plots(merged.of, args.out / "images")
    text = page(merged, pictures, f"python -m benchmarks.page {' '.join(map(str, args.runs))}")
    (args.out / "performance.md").write_text(text)
    print(f"{args.out / 'performance.md'}: {len(merged.results)} cases, {len(pictures)} plots")


def page(record, pictures, command):
    """Return the page as Markdown.

    Args:
        record: a :class:`.harness.record.Record`.
        pictures: file names in images/, by what they show.
        command: what wrote the page.
    """
    about = record.machine
    parts = [f"""# Performance

<!-- Written by: {command} -->
Written by `{command}`, not by hand.

{about["device"]}, {about["threads"]} threads on {about["cores"]} cores, {about["capability"]} kernels
({about["convolutions"] or "PyTorch's"} convolutions), torch {about["torch"]}, Python {about["python"]}, {record.date[:10]}, commit
`{about["commit"]}`. A case is run in turn with its peers, in random order, after their values were found equal; given are
medians of the ratios within a round, and in brackets the interval that holds the true median with 95 % probability
(the sign test's). Where it includes 1, no difference was seen. Peak memory is what a call takes beyond what was held
before. A floor is what a large matrix product or a copy needs, in the same rounds, for the same operations or bytes.
Each table names the command that gives it; `--full` adds what its default leaves out."""]
    for title, text, operations, columns in SECTIONS:
        results = [result for operation in operations for result in record.of(operation)]
        if results:
            parts.append(f"## {title}\n\n{text}\n\n" + _table(results, columns))
    for name, file in pictures.items():
        parts.append(f"![{name}](images/{file})")
    if LESSONS.exists():
        parts.append(LESSONS.read_text().strip())
    return "\n\n".join(parts) + "\n"


def _table(results, columns):
    """Return a Markdown table with a row for every result."""
    # A column that no result fills says nothing.
    columns = {name: cell for name, cell in columns.items() if any(cell(result) for result in results)}
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    for result in results:
        rows.append([result["case"], *(cell(result) or "-" for cell in columns.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _median(name=None):
    def cell(result):
        key = name or next(iter(result["seconds"]))
        return seconds_text(statistics.median(result["seconds"][key])) if key in result["seconds"] else ""
    return cell


def _ratio(peer, inverse=False):
    def cell(result):
        if peer in result["refused"]:
            return "refused: " + " ".join(result["refused"][peer].split())[:120]
        if peer not in result["ratios"]:
            return ""
        ratio = result["ratios"][peer]
        if inverse and ratio.seen:
            return "{:.2f} ({:.2f} to {:.2f})".format(1 / ratio.median, 1 / ratio.high, 1 / ratio.low)
        return str(ratio)
    return cell


def _floor(result):
    return "{:.2f} ({:.2f} to {:.2f})".format(*result["floor"]["ratio"]) if result["floor"] else ""


def _share(result):
    median, low, high = result["floor"]["ratio"]
    return f"{1 / median:.2f} ({1 / high:.2f} to {1 / low:.2f})"


def _per_image(result):
    return seconds_text(statistics.median(result["seconds"]["this library"]) / result["facts"]["batch"])


def _memory(result):
    own, eager = (result["peak_bytes"].get(name) for name in ("this library", EAGER[0]))
    return f"{bytes_text(own)} / {bytes_text(eager)}" if own and eager else ""


def _each(result):
    """Return all peers of a result in one cell."""
    lines = [f"{name}: {ratio}" for name, ratio in result["ratios"].items()]
    lines += [f"{name}: refused: {' '.join(why.split())[:160]}" for name, why in result["refused"].items()]
    return "<br>".join(line.replace("|", "/") for line in lines)


_BOTH_EAGER = {f"{name} / library": _ratio(name) for name in EAGER}
SECTIONS = [
    ("The training step", "`pytest benchmarks/test_joint_step.py --benchmark-only -k test_joint_step --full`\n\nCross-entropy "
     "and denoising score matching, without the optimizer.", ["joint step"], _BOTH_EAGER | {
         "library / eager classifier": _ratio(CLASSIFIER, inverse=True),
         "library / its convolutions by PyTorch": _ratio(UNITS, inverse=True), "library / floor": _floor,
         "library": _median(), "memory, library / eager": _memory}),
    ("What one would run instead", "`pytest benchmarks/test_joint_step.py --benchmark-only -k test_every_peer`\n\nThe same step "
     "with plain norm and linear head, times the library's; what each peer is: `benchmarks/peers/`.",
     ["joint step, all peers"], {"library": _median(), "times the library": _each}),
    ("The score alone", "`pytest benchmarks/test_joint_step.py --benchmark-only -k test_score --full`", ["score"],
     _BOTH_EAGER | {"library": _median(), "memory, library / eager": _memory}),
    ("Operations by order of differentiation", "`pytest benchmarks/test_operations.py --benchmark-only`\n\n\"Backward\" includes "
     "the forward, \"double backward\" both.", ["conv + GELU", "residual + GELU + norm",
                                                "residual + GELU + scale-preserving norm", "noise", "residual"],
     {"times the library": _each, "library / floor": _floor, "library": _median()}),
    ("Convolutions", "`pytest benchmarks/test_convolutions.py --benchmark-only --full`", ["convolution", "torch.nn.Conv2d"],
     {"times the library": _each, "library / floor": _floor, "library": _median()}),
    ("Passes between convolutions", "`pytest benchmarks/test_passes.py --benchmark-only --full`\n\nThe share of a copy's "
     "bandwidth, on tensors larger than the cache.", ["pass"], {"share of the copy": _share, "library": _median()}),
    ("A whole epoch", "`pytest benchmarks/test_epoch.py --benchmark-only`", ["epoch"],
     {"times the library": _each, "library": _median(), "memory, library / eager": _memory}),
    ("Cold costs", "`pytest benchmarks/test_cold.py --benchmark-only --full`", ["import", "first step", "overhead", "build"],
     {"times the library": _each, "library": _median()}),
    ("Scaling", "`pytest benchmarks/test_scaling.py --benchmark-only --full`", ["scaling"],
     {"eager / library": _ratio(EAGER[0]), "library / floor": _floor, "library": _median(), "an image": _per_image,
      "memory, library / eager": _memory}),
]


if __name__ == "__main__":
    main()
