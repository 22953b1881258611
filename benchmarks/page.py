"""Write docs/performance.md and its plots from recorded runs of the benchmarks.

    pytest benchmarks/ --benchmark-only --benchmark-json benchmarks/results/cpu.json
    python -m benchmarks.page benchmarks/results/cpu.json [more.json ...] [--out docs]

Where several files of a machine have the same case, the last one counts. Another machine has tables of its own.
"""

import argparse
import shlex
import statistics
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.plots import scaling_plots
from benchmarks.harness.record import Record, read
from benchmarks.harness.table import bytes_text, markdown, seconds_text
from benchmarks.steps import EAGER
from cdn_kernels.recording import LARGEST

LESSONS = Path(__file__).parent / "lessons.md"
CLASSIFIER, UNITS = "(eager step of a classifier)", "(its convolutions alone, by PyTorch)"
WHOLE = "(this library, clean images as noisy ones)"
# What makes another machine; all else of it is a version.
HARDWARE = ("device", "threads", "cores", "capability", "convolutions", "system")
# Compiled peers are measured on a GPU only. The library is recorded, but for the last.
COMPILED, COMPILED_CLASSIFIER, CALLS = "compiled", "(compiled step of a classifier)", "this library, call by call"


class Section(NamedTuple):
    """A table of the page.

    Attributes:
        title, text: what stands over it.
        file, options: of the command that gives it.
        operations: whose results are its rows.
        columns: functions from a result to a cell, by title; a cell may be empty.
    """

    title: str
    file: str
    options: str
    text: str
    operations: list
    columns: dict


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER")
    args = parser.parse_args(argv)
    merged = merge([read(path) for path in args.runs])
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    pictures = scaling_plots(merged[-1].of, args.out / "images")
    text = page(merged, pictures, shlex.join(["python", "-m", "benchmarks.page", *map(str, args.runs)]))
    (args.out / "performance.md").write_text(text)
    cases = sum(len(record.results) for record in merged)
    print(f"{args.out / 'performance.md'}: {cases} cases, {len(pictures)} plots")


def merge(records):
    """Return a Record for each machine of several; its date and its machine's commit name those of all its results.

    Raises:
        SystemExit: records of different versions.
    """
    last = records[-1].machine
    unused = {"triton"} if not any(record.machine.get("cuda") for record in records) else set()  # GPUs alone run it
    for key in last.keys() - {"commit", *unused, *HARDWARE}:
        if len({record.machine[key] for record in records}) > 1:
            found = " and ".join(str(record.machine[key]) for record in records)
            raise SystemExit(f"expected runs of the same versions, got {key} {found}")
    machines = {}
    for record in records:
        machines.setdefault(tuple(map(record.machine.get, HARDWARE)), []).append(record)
    return [_merged(of_one) for of_one in machines.values()]


def _merged(records):
    results = {name: result for record in records for name, result in record.results.items()}
    commits = sorted({str(result["machine"]["commit"]) for result in results.values()})
    dates = sorted({record.date[:10] for record in records})
    return Record(" and ".join(dates), records[-1].machine | dict(commit="`, `".join(commits)), results)


def page(records, pictures, command):
    """Return the page as Markdown.

    Args:
        records: a :class:`.harness.record.Record` for each machine.
        pictures: file names in images/, by what they show.
        command: what wrote the page.
    """
    machines = "\n\n".join(map(_about, records))
    parts = [
        f"""# Performance

<!-- Written by: {command} -->
Written by `{command}`, not by hand.

{machines}

A case is run in turn with its peers, in random order, after their values were found equal. Given are medians of the
ratios within a round, and in brackets the interval that holds the true median with 95 % probability (the sign test's);
where it includes 1, no difference was seen. "Times the library" is how many times as long a peer takes. Peak memory is
what a call takes beyond what was held before. The floor is what the same operations take in a large matrix product or a
convolution of PyTorch's, whichever is faster, or the same bytes in a copy, in the same rounds. Each table names the
command that gives it; `--full` adds what the default leaves out. Peers in brackets do not do the same thing, and were
not checked for equal values."""
    ]
    missing = []
    for section in SECTIONS:
        tables, absent = [], []
        for record in records:
            results = [result for operation in section.operations for result in record.of(operation)]
            title = [f"{_name(record)}:"] if len(records) > 1 else []
            if results:
                tables += [*title, _table(results, section.columns)]
            else:
                absent.append(_name(record))
        if absent:
            where = "" if len(absent) == len(records) else " on " + " and ".join(absent)
            missing.append(f"{section.title.lower()} (`{section.file}`){where}")
        if tables:
            command = f"`pytest benchmarks/{section.file} --benchmark-only {section.options}".strip() + "`"
            parts.append("\n\n".join(filter(None, [f"## {section.title}", section.text, command, *tables])))
    if missing:
        parts.append("Not measured with these versions: " + ", ".join(missing) + ".")
    for name, file in pictures.items():
        parts.append(f"![{name}](images/{file})")
    if LESSONS.exists():
        parts.append(LESSONS.read_text().strip())
    return "\n\n".join(parts) + "\n"


def _name(record):
    about = record.machine
    return f"{about['device']}, {about['threads']} threads, {about['convolutions'] or about['capability']}"


def _about(record):
    about = record.machine
    return f"""{about["device"]}, {about["threads"]} threads on {about["cores"]} cores, {about["capability"]} kernels,
{about["convolutions"] or "PyTorch's"} convolutions, torch {about["torch"]}, Python {about["python"]},
{record.date}, commit `{about["commit"]}`."""


def _table(results, columns):
    """Return a Markdown table with a row for every result."""
    # A column that no result fills says nothing.
    columns = {name: cell for name, cell in columns.items() if any(cell(result) for result in results)}
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    for result in results:
        rows.append([result["case"], *(cell(result) or "-" for cell in columns.values())])
    return markdown(rows)


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
        # Where no difference is seen, the interval is that of the peer's times, as everywhere.
        return str(ratio.inverse() if inverse and ratio.seen else ratio)

    return cell


def _floor(result):
    return result["floor"]["ratio"].digits if result["floor"] else ""


def _share(result):
    return result["floor"]["ratio"].inverse().digits


def _per_image(result):
    return seconds_text(statistics.median(result["seconds"]["this library"]) / result["facts"]["batch"])


def _memory(result):
    own, eager = (result["peak_bytes"].get(name) for name in ("this library", _FIRST))
    return f"{bytes_text(own)} / {bytes_text(eager)}" if own and eager else ""


def _each(result):
    """Return all peers of a result in one cell."""
    lines = [f"{name}: {ratio}" for name, ratio in result["ratios"].items()]
    lines += [f"{name}: refused: {' '.join(why.split())[:160]}" for name, why in result["refused"].items()]
    return "<br>".join(line.replace("|", "/") for line in lines)


_FIRST = next(iter(EAGER))
_ALL_EAGER = {f"{name} / library": _ratio(name) for name in EAGER}
_ON_GPU = {"compiled / library": _ratio(COMPILED), "call by call / library": _ratio(CALLS)}
_PEERS = {"times the library": _each}
_COSTS = {"library / floor": _floor, "library": _median(), "memory, library / eager": _memory}
SECTIONS = [
    Section(
        "The training step",
        "test_joint_step.py::test_joint_step",
        "--full",
        "Cross-entropy and denoising score matching, without the optimizer.",
        ["joint step"],
        _ALL_EAGER
        | _ON_GPU
        | {
            "library / compiled classifier": _ratio(COMPILED_CLASSIFIER, inverse=True),
            "library / eager classifier": _ratio(CLASSIFIER, inverse=True),
            "library / its convolutions by PyTorch": _ratio(UNITS, inverse=True),
        }
        | _COSTS,
    ),
    Section(
        "Clean images",
        "test_joint_step.py::test_clean_images",
        "--full",
        "Half of the images are clean and take part in classification only: the score is spared them, also by the "
        "peers. The classifier sees all.",
        ["joint step, half clean"],
        {"clean images as noisy ones / library": _ratio(WHOLE)}
        | _ALL_EAGER
        | {"library / eager classifier": _ratio(CLASSIFIER, inverse=True)}
        | _COSTS,
    ),
    Section(
        "What one would run instead",
        "test_joint_step.py::test_every_peer",
        "--full",
        "The same step with plain norm and linear head. What each peer is: `benchmarks/peers/`.",
        ["joint step, all peers"],
        _PEERS | _COSTS,
    ),
    Section(
        "The score alone", "test_joint_step.py::test_score", "--full", "", ["score"], _ALL_EAGER | _ON_GPU | _COSTS
    ),
    Section(
        "From small networks to large ones",
        "test_sizes.py",
        "--full",
        "The joint step with plain norm and linear head. The library is recorded where its tensors fit "
        f"{LARGEST >> 20} MiB.",
        ["size"],
        _ALL_EAGER | {"call by call / library": _ratio(CALLS)} | _COSTS,
    ),
    Section(
        "Operations by order of differentiation",
        "test_operations.py",
        "",
        '"Backward" includes the forward, "double backward" both.',
        ["conv + GELU", "residual + GELU + norm", "residual + GELU + scale-preserving norm", "noise", "residual"],
        _PEERS | _COSTS,
    ),
    Section(
        "Convolutions",
        "test_convolutions.py",
        "--full",
        "",
        ["six units", "convolution", "torch.nn.Conv2d"],
        _PEERS | _COSTS,
    ),
    Section(
        "Passes between convolutions",
        "test_passes.py",
        "--full",
        "On tensors larger than the cache.",
        ["pass"],
        {"share of a copy's bandwidth": _share, "library": _median()} | _PEERS,
    ),
    Section(
        "Reading photographs",
        "test_loading.py",
        "--full",
        "JPEG files, decoded, cut and resized, whose pages the system has in memory. The peer decodes them whole.",
        ["loading"],
        {
            "torch's DataLoader over Pillow / library": _ratio("(torch's DataLoader over Pillow)"),
            "an image": _per_image,
        },
    ),
    Section("A whole epoch", "test_epoch.py", "", "", ["epoch"], _PEERS | _COSTS),
    Section(
        "Certification",
        "test_certification.py",
        "--full",
        "`cdn.certify` on one image, noise, counts and bounds included, against as many plain forwards of one "
        "noisy batch.",
        ["certification"],
        {"plain forward / library": _ratio("plain forward"), "a sample": _per_image, "library": _median()},
    ),
    Section("Cold costs", "test_cold.py", "--full", "", ["import", "first step", "overhead", "build"], _PEERS | _COSTS),
    Section(
        "Scaling",
        "test_scaling.py",
        "--full",
        "",
        ["scaling"],
        {"eager / library": _ratio(_FIRST), "an image": _per_image} | _COSTS,
    ),
]


if __name__ == "__main__":
    main()
