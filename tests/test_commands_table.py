"""Every command and every bad input: status 1, one line on stderr that names it, no traceback, no half of a file.

A command without a row fails; a further input is one more line of FAULTS.
"""

import contextlib
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import sklearn.datasets
import sklearn.utils
import torch
from PIL import Image

from cdn.run_folder.names import LOCK
from tests.command_rows import COMMANDS, FROZEN, KINDS, ROOT, edit_config, make_place, run
from tests.faults import closed_pipe, contents, full_disk, read_only, unreadable

# what goes wrong


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def foreign_weights(at):
    safetensors.torch.save_file({"weight": torch.zeros(3)}, at.run / "model.safetensors")


def weights_of_nan(at):
    path = at.run / "model.safetensors"
    weights, name = safetensors.torch.load_file(path), "head.classes.weight"
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(weights | {name: torch.full_like(weights[name], math.nan)}, path, metadata)


def state_of_nan(at):
    path = at.run / "state.pt"
    state = torch.load(path, weights_only=True)
    state["model"]["head.classes.weight"].fill_(math.nan)
    torch.save(state, path)


def other_weights(at):
    shutil.copy(FROZEN / "denoiser" / "config.json", at.run / "config.json")
    path = at.run / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"width\\": 8', b'\\"width\\": 9', 1))


def moved_data(at):
    gone = str(at.root / "gone")
    edit_config(at, data=dict(name="imagefolder", data_dir=gone), training=dict(data="imagefolder", data_dir=gone))


def of_kind(at, kind):
    folder, objective = KINDS[kind]
    if folder != "joint":
        shutil.rmtree(at.run)
        shutil.copytree(FROZEN / folder, at.run)
    edit_config(at, training=dict(objective=objective))


FILES = dict(config="config.json", weights="model.safetensors", state="state.pt", rows="metrics.jsonl")
# By name: what of a command is concerned, what happens at a place, and a word of the line that tells it. What happens
# may return a context in which the command runs.
FAULTS = {
    "no run": ("config weights", lambda at: shutil.rmtree(at.run), "run"),
    "a file for a run": ("config weights", lambda at: (shutil.rmtree(at.run), at.run.write_text("?")), "run"),
    "an empty run": ("config weights", lambda at: (shutil.rmtree(at.run), at.run.mkdir()), "run"),
    **{
        f"{how} {file}": (file, lambda at, act=act, name=name: act(at.run / name), name)
        for file, name in FILES.items()
        for how, act in {
            "torn": cut,
            "no": Path.unlink,
            "text for": lambda path: path.write_text("text"),
            "bytes for": lambda path: path.write_bytes(b"\xff\xfe\x00" * 99),
            "a folder for": lambda path: (path.unlink(), path.mkdir()),
            "unreadable": unreadable,
        }.items()
        if (how, file) != ("no", "state")  # without one a run begins again
    },
    "config of something else": ("config", lambda at: (at.run / "config.json").write_text("[]"), "config.json"),
    "weights of nan": ("weights", weights_of_nan, "head.classes.weight"),
    "a state of nan": ("state", state_of_nan, "head.classes.weight"),
    "foreign weights": ("weights", foreign_weights, "model.safetensors"),
    "weights of another model": ("weights", other_weights, "model.safetensors"),
    "moved data": ("data", moved_data, "gone"),
    "other classes": ("data", lambda at: edit_config(at, classes=["one", "two"]), "one"),
    **{f"a run of {kind}": (f"refuses {kind}", lambda at, kind=kind: of_kind(at, kind), "run") for kind in KINDS},
    "no image": ("image", lambda at: at.image.unlink(), "image.png"),
    "torn image": ("image", lambda at: cut(at.image), "image.png"),
    "text for an image": ("image", lambda at: at.image.write_text("text"), "image.png"),
    "a folder for an image": ("image", lambda at: (at.image.unlink(), at.image.mkdir()), "image.png"),
    "unreadable image": ("image", lambda at: unreadable(at.image), "image.png"),
    "no images": ("images", lambda at: shutil.rmtree(at.images), "images"),
    "an empty folder of images": ("images", lambda at: (at.images / "a.png").unlink(), "images"),
    "torn image among others": ("images", lambda at: cut(at.images / "a.png"), "a.png"),
    "read-only run": ("in run", lambda at: read_only(at.run), "run"),
    "read-only folder": ("in out", lambda at: read_only(at.out.parent), "out"),
    "a file for the folder of results": (
        "in out",
        lambda at: (at.out.parent.rmdir(), at.out.parent.write_text("?")),
        "out",
    ),
    "full disk, in the run": ("in run", lambda at: full_disk(), "run"),
    "full disk": ("in out", lambda at: full_disk(), "out"),
}


def concerns(command, what):
    """Say whether a fault concerns a command: by a word of what it reads, where it writes, or what it refuses."""
    head, _, tail = what.partition(" ")
    if head == "in":
        return command.writes == tail
    if head == "refuses":
        return tail in command.refuses.split()
    return bool(set(what.split()) & set(command.reads.split()))


# cells


@pytest.fixture
def at(tmp_path):
    return make_place(tmp_path / "place")


def files(place):
    return {path: data for path, data in contents(place.root).items() if data is not None and path.name != LOCK}


CELLS = [
    pytest.param(command, fault, id=f"{name}: {fault}")
    for name, command in COMMANDS.items()
    for fault, (what, _, _) in FAULTS.items()
    if concerns(command, what)
]


@pytest.mark.parametrize("command, fault", CELLS)
def test_a_bad_input_is_told_in_a_line(at, command, fault, monkeypatch, capsys):
    _, act, word = FAULTS[fault]
    happens = act(at)
    context = happens if hasattr(happens, "__enter__") else contextlib.nullcontext()
    before = files(at)
    with context:
        status = run(command.module, command.words(at), monkeypatch)
    printed = capsys.readouterr().err
    assert status == 1, printed
    assert printed.count("\n") == 1 and printed.startswith("error: ") and word in printed, printed
    assert files(at) == before


def modules_with_commands():
    paths = [path for pattern in ("cdn/**/*.py", "cdn_kernels/*.py") for path in ROOT.glob(pattern)]
    names = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path.read_text() for path in paths}
    return {name for name, text in names.items() if '__name__ == "__main__"' in text}


def test_every_command_has_a_row():
    assert {command.module for command in COMMANDS.values()} == modules_with_commands()


def test_every_fault_concerns_a_command():
    assert {cell.values[1] for cell in CELLS} == set(FAULTS)


@pytest.mark.parametrize("module", sorted(modules_with_commands()))
def test_help_bears_a_closed_pipe(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    assert run(module, ["--help"], monkeypatch) in (0, 1)
    assert capsys.readouterr().err == ""


QUICK = {name: command for name, command in COMMANDS.items() if command.quick}


@pytest.mark.parametrize("name", QUICK)
def test_results_are_written_without_a_reader(at, name, monkeypatch, capsys):
    before, command = files(at), QUICK[name]
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    assert run(command.module, command.words(at), monkeypatch) == (0 if command.writes else 1)
    assert capsys.readouterr().err == ""
    assert bool(files(at).keys() - before.keys()) == bool(command.writes)


@pytest.mark.parametrize("name", [name for name, command in QUICK.items() if command.words is not QUICK["info"].words])
def test_names_need_not_be_utf_8(tmp_path, name, monkeypatch, capsys):
    place = make_place(tmp_path / os.fsdecode(b"caf\xe9 \xe7\x8c\xab"))
    assert run(QUICK[name].module, QUICK[name].words(place), monkeypatch) == 0
    assert capsys.readouterr().err == ""


FAILING = [name for name, command in COMMANDS.items() if command.reads or command.writes]


def let_fail(name, place):
    """Take away what a command of FAILING reads, or what it writes into."""
    if {"config", "weights"} & set(COMMANDS[name].reads.split()):
        shutil.rmtree(place.run)
    else:
        place.out.parent.rmdir()
        place.out.parent.write_text("?")


@pytest.mark.parametrize("name", FAILING)
def test_errors_name_what_is_not_utf_8(tmp_path, name, monkeypatch, capsys):
    place = make_place(tmp_path / os.fsdecode(b"caf\xe9"))
    let_fail(name, place)
    assert run(COMMANDS[name].module, COMMANDS[name].words(place), monkeypatch) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "caf\\udce9" in printed


@pytest.mark.parametrize("name", FAILING)
def test_errors_are_told_without_a_reader_of_the_output(at, name, monkeypatch, capsys):
    let_fail(name, at)
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    assert run(COMMANDS[name].module, COMMANDS[name].words(at), monkeypatch) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and printed.startswith("error: ")


SEEING = [name for name, command in COMMANDS.items() if {"data", "image", "images"} & set(command.reads.split())]


@pytest.mark.parametrize(
    "name", [name if COMMANDS[name].quick else pytest.param(name, marks=pytest.mark.slow) for name in SEEING]
)
def test_blank_images_are_taken_or_refused_in_a_line(at, name, monkeypatch, capsys):
    """Black images in files, and those of the digits in the place of the data that they are."""
    for path in (at.image, at.images / "a.png"):
        Image.new("L", (8, 8)).save(path)
    digits = sklearn.datasets.load_digits()
    monkeypatch.setattr(
        sklearn.datasets, "load_digits", lambda: sklearn.utils.Bunch(**digits | dict(images=0 * digits.images))
    )
    command = COMMANDS[name]
    limit = ["--limit", 4] if "data" in command.reads and "state" not in command.reads else []
    status = run(command.module, [*command.words(at), *limit], monkeypatch)
    printed = capsys.readouterr()
    told = [line for line in printed.err.splitlines() if not line.startswith("note: ")]
    assert (status == 0 and not told) or (status == 1 and len(told) == 1 and told[0].startswith("error: ")), told
    assert status == 0 or not command.quick
    assert not re.search(r"\bnan\b", printed.out), printed.out
    for path in at.root.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
