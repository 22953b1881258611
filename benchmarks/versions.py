"""Run the tests with the versions at hand, keep a record of the run, and write docs/versions.md from all records.

    python -m benchmarks.versions run [--lowest] [-- PYTEST ARGUMENTS]
    python -m benchmarks.versions table

``nox`` does the first for every pair of versions in noxfile.py.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch

from benchmarks.harness.checkout import ROOT, environment

RECORDS, PAGE = ROOT / "docs/records/versions.jsonl", ROOT / "docs/versions.md"
PACKAGES = ("triton", "numpy", "scikit-learn", "scipy", "Pillow", "matplotlib", "safetensors", "tqdm", "pytest")
# What the project means to run with, whether or not anyone has tried.
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# What is known of failures, by the Python that has them.
KNOWN = {
    "3.12.1": "the interpreter itself crashes in traceback.walk_stack, which torch.manual_seed calls, after a test "
    "that interrupts a context manager; alone, the test passes"
}


class Outcome(NamedTuple):
    """What became of the tests of a run: how many, and why those that did not run did not."""

    passed: int
    failed: int
    skipped: int
    failures: list[str]
    reasons: dict[str, int]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.versions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run pytest here, add a record, and write the page")
    run.add_argument("--lowest", action="store_true", help="say that each package has its lowest version")
    run.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="of pytest, after --")
    run.set_defaults(command=lambda args: record_run(args.lowest, args.arguments))
    table = commands.add_parser("table", help="write the page from the records")
    table.set_defaults(command=lambda args: write_page())
    args = parser.parse_args(argv)
    args.command(args)


def record_run(lowest: bool, arguments: list[str]) -> None:
    """Run pytest in this environment, add a record, and write the page; exit as pytest did."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["python", "-m", "pytest", *arguments]
        status = subprocess.run(
            [sys.executable, *command[1:], f"--junitxml={report}"], cwd=ROOT, env=environment()
        ).returncode
        if not report.exists():
            raise SystemExit(status)
        outcome = read_report(report)
    record = dict(
        date=datetime.date.today().isoformat(),
        commit=commit(),
        lowest=lowest,
        command=shlex.join(command),
        **versions(),
        **outcome._asdict(),
    )
    RECORDS.parent.mkdir(exist_ok=True)
    with RECORDS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    write_page()
    raise SystemExit(status)


def read_report(path: Path) -> Outcome:
    """Count the tests of a report that pytest wrote with --junitxml; an expected failure counts as skipped."""
    failures, reasons, tests = [], Counter(), 0
    for case in ElementTree.parse(path).iter("testcase"):
        tests += 1
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif (skipped := case.find("skipped")) is not None:
            reasons[skipped.get("message", "")] += 1
    skips = sum(reasons.values())
    return Outcome(tests - len(failures) - skips, len(failures), skips, failures, dict(sorted(reasons.items())))


def versions() -> dict[str, Any]:
    """Return what the tests run with."""
    return dict(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        packages={name: _version(name) for name in PACKAGES},
    )


def commit() -> str | None:
    """Return the commit of the tree, "-dirty" if more than the records was changed since; None without git."""
    git = lambda *arguments: subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    try:
        found = git("rev-parse", "--short=12", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", ".", *(f":!{p.relative_to(ROOT)}" for p in (RECORDS, PAGE)))
    except OSError:
        return None
    return found.stdout.strip() + "-dirty" * (changed.returncode != 0) if found.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------------------


def write_page() -> None:
    """Write docs/versions.md."""
    PAGE.write_text(page(read_records()))


def read_records() -> list[dict[str, Any]]:
    """Return the records of all runs, in their order."""
    return [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []


def page(records: list[dict[str, Any]]) -> str:
    """Return the page as Markdown, a row for the last run of each Python with each torch."""
    last = {(_numbers(r["python"])[:2], _numbers(r["torch"]), r["lowest"]): r for r in records}
    rows = [last[key] for key in sorted(last)]
    columns = ["Python", "torch", "triton", "numpy", "others", "passed", "failed", "skipped", "date", "commit"]
    lines = [columns, ["---"] * len(columns), *map(_row, rows)]
    tried = {_numbers(r["python"])[:2] for r in rows}
    missing = [python for python in PYTHONS if _numbers(python) not in tried]
    parts = [
        """# Versions

<!-- Written by: python -m benchmarks.versions table -->
Written by `python -m benchmarks.versions table` from `docs/records/versions.jsonl`, not by hand. `nox` runs the tests
of each row, one environment each, and adds to the records.""",
        "\n".join("| " + " | ".join(line) + " |" for line in lines),
        '"Lowest" is the lowest version of each package that pyproject.toml asks for, "newest" what pip would install.',
    ]
    if missing:
        parts.append(f"Not run: {', '.join(f'Python {python}' for python in missing)}.")
    commands = "".join(f"\n    {command}" for command in dict.fromkeys(r["command"] for r in rows))
    if commands:
        parts.append("Run as:\n" + commands)
    reasons: Counter[str] = Counter()
    for r in rows:
        reasons.update(r["reasons"].keys())
    if reasons:
        parts.append("Why tests were skipped:\n\n" + "\n".join(f"* {why}" for why in sorted(reasons)))
    failures = [f"* Python {r['python']}, torch {r['torch']}: {name}" for r in rows for name in r["failures"]]
    if failures:
        parts.append("What failed:\n\n" + "\n".join(failures))
    known = [python for python in KNOWN if any(f"Python {python}," in failure for failure in failures)]
    parts += [f"Python {python}: {KNOWN[python]}." for python in known]
    return "\n\n".join(parts) + "\n"


def _row(record: dict[str, Any]) -> list[str]:
    build = f", CUDA {record['cuda']}" if record["cuda"] else ", CPU only"
    return [
        record["python"],
        record["torch"].partition("+")[0] + build + (f", on {record['gpu']}" if record["gpu"] else ""),
        record["packages"]["triton"] or "none",
        record["packages"]["numpy"] or "none",
        "lowest" if record["lowest"] else "newest",
        *(str(record[key]) for key in ("passed", "failed", "skipped")),
        record["date"],
        f"`{record['commit']}`",
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


if __name__ == "__main__":
    main()
