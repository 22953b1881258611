"""Write docs/networks.md: what networks of all kinds need, and recorded runs of benchmarks/test_networks.py.

    pytest benchmarks/test_networks.py --benchmark-only --full --threads 1 --benchmark-json FILE.json
    python -m benchmarks.network_page FILE.json [more.json ...] [--out docs]

Several files may be of several numbers of threads; of those with the same, the last one that has a case counts.
"""

import argparse
import itertools
import shlex
import statistics
from pathlib import Path

from benchmarks.harness.checkout import ROOT
from benchmarks.harness.record import LIBRARY, read
from benchmarks.harness.table import bytes_text, markdown
from benchmarks.harness.timing import summarize
from benchmarks.networks import NETWORKS, SIZES

HEAD = """# Networks of all kinds

<!-- Written by: {command} -->
Written by `{command}`, not by hand.

What a training step with an input gradient in its loss takes, for networks that other people wrote, as they are. Each
is called in the form that is natural to it; the lines below are those that are tested and timed. In float64 the
gradient of the whole network equals that of eager double backward to 1e-12 of its norm, with frozen parameters, buffers
and random numbers as PyTorch leaves them: `pytest tests/kernels/test_networks.py -m "networks or not networks"` tests
it, and skips those whose package is missing.

The packages of `pip install -e ".[networks]"` leave the torch that is there as it is:
{extra}. The others are installed by hand. timm and deepinv ask for torchvision,
each release of which asks for one release of torch: install the torchvision that belongs to your torch first.
schnetpack holds torchmetrics at a version of its own, and its releases up to 2.1.1 import a name that torch 2.13 no
longer has, which `benchmarks/networks/atoms.py` puts there."""
MEASURED = """## Time and memory

{machines}

A step in float32, without the optimizer, in turn with eager PyTorch, in random order, after the gradients were found
equal, in processes that keep the memory they free (`cdn_kernels.keep_pages()`). Given is how many times as long eager
takes, each in the layout that suits it better, as the median of the ratios within a round, and in brackets the interval
that holds the true one with 95 % probability; where that includes 1, no difference was seen. Of networks of 2-D
convolutions both layouts are timed of both. Where a network happens to have its memory is worth several per cent of
steps of less than some 60 ms: these are built anew nine times, and the median of each time counts as a round. Records
"step by step" have library and eager in one process, which noise moves least; the others each in a process of its own,
begun anew nine times, but before commit `ce3b4874631d`, with one pair of processes and the library's channels last
alone. Memory is the peak of the buffers in use, beyond what was held before, in a process of its own."""


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.network_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="*", metavar="JSON")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER")
    args = parser.parse_args(argv)
    path = args.out / "networks.md"
    path.write_text(page(args.runs))
    print(f"{path}: {len(NETWORKS)} networks")


def page(runs):
    """Return the page as Markdown, of the paths of recorded runs."""
    records = [read(path) for path in runs]
    parts = [
        HEAD.format(command=shlex.join(["python", "-m", "benchmarks.network_page", *map(str, runs)]), extra=_extra())
    ]
    if any(record.of("network") for record in records):
        cells = _cells(records)
        parts += [MEASURED.format(machines="\n".join(_sources(records, cells))), _table(records, cells)]
    missing = [name for name in NETWORKS if not _versions(records, name)]
    if missing:
        parts.append("Not measured: " + "; ".join(missing) + ".")
    parts.append("## The lines that each takes")
    for names in _by_builder().values():
        network = NETWORKS[names[0]]
        sizes = "\n".join(f"* {name}, {size}: {_words(NETWORKS[name].sizes[size])}" for name in names for size in SIZES)
        parts += [f"### {', '.join(names)}", sizes, f"```python\n{network.lines()}\n```"]
    return "\n\n".join(parts) + "\n"


def _extra():
    """Return the packages of the extra ``networks`` in words."""
    packages = {network.package for network in NETWORKS.values()}
    text = (ROOT / "pyproject.toml").read_text()
    return ", ".join(sorted(name for name in packages if name and f'"{name}>=' in text))


def _by_builder():
    """Return the names of networks by what builds them."""
    found = {}
    for name, network in sorted(NETWORKS.items(), key=lambda row: row[1].package or ""):
        found.setdefault(network.build, []).append(name)
    return found


def _words(sizes):
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def _cells(records):
    """Return {(threads, network, size): (result, the record that it is in)}, of several the last."""
    return {
        (record.machine["threads"], result["facts"]["network"], result["facts"]["size"]): (result, record)
        for record in records
        for result in record.of("network")
    }


def _sources(records, cells):
    """Yield a line for every record, of those cells of the table that it fills."""
    for record in records:
        columns = {}
        for (threads, name, size), (_, source) in cells.items():
            if source is record:
                columns.setdefault((size, threads), []).append(name)
        filled = "; ".join(
            f"{size}, threads: {threads}, of {', '.join(names) if len(names) < 4 else f'{len(names)} networks'}"
            for (size, threads), names in columns.items()
        )
        if filled:
            yield f"* {filled}: {_machine(record)}"


def _machine(record):
    about = record.machine
    clock = "seconds of the processor, beside other work" if _have(record, "clock") else "seconds of the clock"
    in_turn = ", step by step" if _have(record, "in_turn") else ""
    return (
        f"{about['device']}, {about['threads']} of {about['cores']} cores, {about['capability']} kernels, torch "
        f"{about['torch']}, Python {about['python']}, {record.date[:10]}, commit `{about['commit']}`, {clock}{in_turn}"
    )


def _have(record, fact):
    return any(fact in result["facts"] for result in record.of("network"))


def _table(records, cells):
    threads = sorted({threads for threads, _, _ in cells})
    found = {key: result for key, (result, _) in cells.items()}
    columns = [(n, size) for size in SIZES for n in threads]
    rows = [
        ["network", "version", *(f"{size}, threads: {n}" for n, size in columns), "memory, larger, library / eager"]
    ]
    rows.append(["---"] * len(rows[0]))
    for name in itertools.chain.from_iterable(_by_builder().values()):
        version = _versions(records, name)
        if version:
            ratios = [_ratio(found.get((n, name, size))) for n, size in columns]
            rows.append([name, " and ".join(version), *ratios, _memory(found.get((threads[0], name, SIZES[-1])))])
    return markdown(rows)


def _versions(records, name):
    """Return the versions that were measured of a network, "-" for one that has none."""
    facts = [result["facts"] for record in records for result in record.of("network")]
    return sorted({fact["version"] or "-" for fact in facts if fact["network"] == name})


def _best(result, of_library):
    """Return the case that took least time, of the library or of eager; None if that did not run."""
    medians = {
        name: statistics.median(values)
        for name, values in result["seconds"].items()
        if name.startswith(LIBRARY) == of_library
    }
    return min(medians, key=medians.get, default=None)


def _ratio(result):
    if result is None:
        return "-"
    library, eager = (_best(result, of_library) for of_library in (True, False))
    if eager is None:
        return "; ".join(result["refused"].values())
    seconds = result["seconds"]
    return str(summarize([theirs / own for theirs, own in zip(seconds[eager], seconds[library])]))


def _memory(result):
    best = [] if result is None else [_best(result, of_library) for of_library in (True, False)]
    return " / ".join(bytes_text(result["peak_bytes"][name]) for name in best) if all(best) and best else "-"


if __name__ == "__main__":
    main()
