"""Evaluations and certificates of several processes are those of one; what goes wrong on any ends all, and is said."""

import json

import pytest

from tests.processes.faulty import UNREADABLE
from tests.processes.torchrun import torchrun

pytestmark = pytest.mark.processes
# What differs from one execution to the next.
OF_THE_DAY = ("date", "seconds", "samples_per_second", "options")


def timeless(value):
    """Return what JSON holds without dates, seconds, and the folder it was written into."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in OF_THE_DAY}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def results(command, count, run, out, *options):
    """Return the files of JSON that a command wrote, by name, and how many lines it printed."""
    out.mkdir()
    target = out / "evaluation.json" if command == "cdn.evaluate" else out
    done = torchrun(count, command, run, "--out", target, "--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    read = lambda text: timeless(json.loads(text))
    files = {path.name: read(path.read_text()) for path in out.glob("*.json")}
    files |= {path.name: [read(row) for row in path.read_text().splitlines()] for path in out.glob("*.jsonl")}
    for report in files.values():
        if isinstance(report, dict) and "command" in report:
            report["command"] = report["command"].replace(str(out), "OUT")
    return files, len(done.stdout.splitlines())


@pytest.mark.parametrize(
    "command, options",
    [
        ("cdn.evaluate", "--limit 270 --batch-size 50"),
        ("cdn.certify", "--limit 7 --n0 10 --n 60 --sigmas 0.25 0.5"),
        ("cdn.experiments.robustness", "--limit 7 --steps 5 --radii-linf 16 64 --radii-l2 1 --checks 0"),
    ],
)
def test_several_processes_find_what_one_finds(digits_run, tmp_path, command, options):
    found = [results(command, count, digits_run, tmp_path / f"{count}", *options.split()) for count in (1, 2, 3)]
    assert found[1] == found[0] and found[2] == found[0]
    assert sum(map(len, found[0][0].values())) > 5


USAGE = "argument --limit: expected a whole number of at least 1, got '0'"
ENDED = "another process of this run has ended"


@pytest.mark.parametrize(
    "module, arguments, said",
    [
        ("tests.processes.faulty", "unreadable 1 RUN --out OUT/a.json", f"error: {UNREADABLE}"),
        ("tests.processes.faulty", "unreadable 01 RUN --out OUT/a.json", f"error: {UNREADABLE}"),
        ("tests.processes.faulty", "fault 01 RUN --out OUT/a.json", "ZeroDivisionError: a fault of the code"),
        ("tests.processes.faulty", "killed 1 RUN --out OUT/a.json", ""),
        ("cdn.evaluate", "RUN --out OUT/nowhere/a.json", "error: OUT/nowhere/a.json: its folder does not exist"),
        ("cdn.evaluate", "OUT/nothing", "error: OUT/nothing does not exist: expected a run folder"),
        ("cdn.evaluate", "RUN --limit 0", f"python -m cdn.evaluate: error: {USAGE}"),
        ("cdn.denoise", "RUN a.png OUT/b.png", "error: this command runs in one process, and this is one of 2"),
        ("cdn.experiments.jacobian", "RUN --out OUT/c", "error: this command runs in one process"),
    ],
)
def test_an_error_on_any_process_ends_all_and_is_said_once(digits_run, tmp_path, module, arguments, said):
    fill = lambda text: text.replace("RUN", str(digits_run)).replace("OUT", str(tmp_path))
    done = torchrun(2, module, *fill(arguments).split())
    assert done.returncode != 0 and done.stdout == "" and not list(tmp_path.iterdir())
    # But for what torchrun says itself.
    lines = [line for line in done.stderr.splitlines() if "ChildFailedError" not in line]
    own = [line for line in lines if "error: " in line or "Error: " in line]
    assert len(own) == 1 if said else all(ENDED in line for line in own)
    assert fill(said) in "".join(own)
