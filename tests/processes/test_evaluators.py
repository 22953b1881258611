"""Evaluations and certificates of several processes are those of one; what goes wrong on any ends all, and is said."""

import json
from functools import partial

import pytest

from tests.forked import in_processes, say
from tests.processes.faulty import UNREADABLE, going_wrong
from tests.processes.torchrun import torchrun

pytestmark = pytest.mark.processes
# What differs from one execution to the next.
OF_THE_DAY = ("date", "seconds", "samples_per_second", "options")


def timeless(value):
    """Return what JSON holds without dates, seconds, and the folder it was written into."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in OF_THE_DAY}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def results(module, count, run, out, *options):
    """Return the files of JSON that a command wrote, by name, and how many lines it printed."""
    out.mkdir()
    target = out / "evaluation.json" if module == "cdn.commands.evaluate" else out
    words = str(run), "--out", str(target), "--device", "cpu", *options
    (status, told, complaints), *others = in_processes(count, say, module, words, join=False)
    assert status == 0, complaints
    assert others == [(0, "", "")] * (count - 1)
    read = lambda text: timeless(json.loads(text))
    files = {path.name: read(path.read_text()) for path in out.glob("*.json")}
    files |= {path.name: [read(row) for row in path.read_text().splitlines()] for path in out.glob("*.jsonl")}
    for report in files.values():
        if isinstance(report, dict):
            report.pop("command", None)  # that of the process, which others share
            if module == "cdn.commands.certify":
                report.pop("text")  # a table of the results, samples per second among them
    return files, len(told.splitlines())


@pytest.mark.parametrize(
    "module, options",
    [
        ("cdn.commands.evaluate", "--limit 270 --batch-size 50"),
        ("cdn.commands.certify", "--limit 7 --n0 10 --n 60 --sigmas 0.25 0.5"),
        ("cdn.experiments.robustness", "--limit 7 --steps 5 --radii-linf 16 64 --radii-l2 1 --checks 0"),
    ],
)
def test_several_processes_find_what_one_finds(digits_run, tmp_path, module, options):
    found = [results(module, count, digits_run, tmp_path / f"{count}", *options.split()) for count in (1, 3)]
    assert found[1] == found[0]
    assert sum(map(len, found[0][0].values())) > 4


USAGE = "argument --limit: expected a whole number of at least 1, got '0'"
ENDED = "another process of this run has ended"
EVALUATE = "cdn.commands.evaluate"


def filled(text, run, out):
    return text.replace("RUN", str(run)).replace("OUT", str(out))


@pytest.mark.parametrize(
    "module, arguments, fault, said",
    [
        (EVALUATE, "RUN --out OUT/a.json", ("unreadable", 1), f"error: {UNREADABLE}"),
        (EVALUATE, "RUN --out OUT/a.json", ("unreadable", 0, 1), f"error: {UNREADABLE}"),
        (EVALUATE, "RUN --out OUT/nowhere/a.json", (), "error: OUT/nowhere/a.json: its folder does not exist"),
        (EVALUATE, "OUT/nothing", (), "error: OUT/nothing does not exist: expected a run folder"),
        (EVALUATE, "RUN --limit 0", (), f"python -m cdn.evaluate: error: {USAGE}"),
        ("cdn.commands.denoise", "RUN a.png OUT/b.png", (), "error: this command runs in one process, and this is one"),
        ("cdn.experiments.jacobian", "RUN --out OUT/c", (), "error: this command runs in one process"),
    ],
)
def test_an_error_on_any_process_ends_all_and_is_said_once(digits_run, tmp_path, module, arguments, fault, said):
    words = filled(arguments, digits_run, tmp_path).split()
    found = in_processes(2, say, module, words, partial(going_wrong, *fault), join=False)
    assert all(status != 0 and out == "" for status, out, _ in found) and not list(tmp_path.iterdir())
    complaints = [err for _, _, err in found if err]
    assert len(complaints) == 1 and filled(said, digits_run, tmp_path) in complaints[0]


@pytest.mark.parametrize("fault, said", [("fault 01", "ZeroDivisionError"), ("killed 1", "")])
def test_torchrun_ends_all_and_says_it_once(digits_run, tmp_path, fault, said):
    done = torchrun(2, "tests.processes.faulty", *fault.split(), digits_run, "--out", tmp_path / "a.json")
    assert done.returncode != 0 and done.stdout == "" and not list(tmp_path.iterdir())
    # But for what torchrun says itself.
    lines = [line for line in done.stderr.splitlines() if "ChildFailedError" not in line]
    own = [line for line in lines if "error: " in line or "Error: " in line]
    assert len(own) == 1 if said else all(ENDED in line for line in own)
    assert said in "".join(own)
