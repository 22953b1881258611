"""Every command and every bad input: status 1, one line on stderr that names it, no traceback, no half of a file.

A command without a row fails; a further input is one more line of FAULTS.
"""

import contextlib
import json
import os
import runpy
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from PIL import Image

import cdn
import cdn.commands.certify
from cdn.run_folder.names import LOCK
from tests.faults import closed_pipe, contents, full_disk, read_only, unreadable
from tests.frozen import freeze

ROOT = Path(cdn.__file__).parents[1]
FROZEN = min(path for path in freeze.FOLDER.iterdir() if path.is_dir() and path.name[0].isdigit())


class Place(NamedTuple):
    """What commands are given: a stopped run, a classifier, an image, a folder of it, and where results go."""

    root: Path
    run: Path
    other: Path
    image: Path
    images: Path
    out: Path


class Command(NamedTuple):
    """A row: a module, what follows it, what it reads and writes, the runs that it refuses.

    Attributes:
        words: makes the arguments, of a place.
        reads: of a run its "config", "weights", "state" and "rows"; its "data"; an "image", or a folder of "images".
        writes: "run", or "out" for a place of its own; "" for neither.
        refuses: those of KINDS that it can do nothing with.
        quick: that all of it takes less than a second.
    """

    module: str
    words: Callable[[Place], list[object]]
    reads: str = ""
    writes: str = ""
    refuses: str = ""
    quick: bool = False


# What a run may be of, beside a joint model: by the frozen run, and the objective in its configuration.
KINDS = {
    "resnet": ("resnet", "classification"),
    "denoiser": ("denoiser", "denoising"),
    "classification": ("joint", "classification"),
    "denoising": ("joint", "denoising"),
}
NO_DENSITY, NO_CLASSES, NOT_BOTH = "resnet classification", "denoiser denoising", " ".join(KINDS)
MEASURED = "config weights data"


def experiment(name, *words, reads=MEASURED, refuses=""):
    arguments = lambda at: [at.run, "--out", at.out, "--device", "cpu", *(w(at) if callable(w) else w for w in words)]
    return Command(f"cdn.experiments.{name}", arguments, reads, "out", refuses)


COMMANDS = {
    "train, new": Command("cdn.train", lambda at: ["--out", at.out, *freeze.TINY], "", "out"),
    "train, resumed": Command("cdn.train", lambda at: ["--resume", at.run], "config state data", "run"),
    "evaluate": Command(
        "cdn.evaluate", lambda at: [at.run, "--limit", 4, "--device", "cpu"], MEASURED, "run", quick=True
    ),
    "classify": Command("cdn.classify", lambda at: [at.run, at.image], "weights image", "", NO_CLASSES, quick=True),
    "denoise": Command(
        "cdn.denoise",
        lambda at: [at.run, at.image, at.out.with_suffix(".png"), "--sigma", 0.1],
        "weights image",
        "out",
        NO_DENSITY,
        quick=True,
    ),
    "certify": Command("cdn.certify", lambda at: [at.run, "--out", at.out], MEASURED, "out", NO_CLASSES),
    "ablation": Command("cdn.experiments.ablation", lambda at: ["--out", at.out, "--data-dir", at.images], "", "out"),
    "bounds": Command("cdn.experiments.bounds", lambda at: ["--out", at.out], "", "out", quick=True),
    "compare": Command("cdn.experiments.compare", lambda at: [at.run, "--out", at.out], "config rows", "out"),
    "learning_curves": Command(
        "cdn.experiments.learning_curves",
        lambda at: ["--data", "digits", "--sizes", 100, "--steps", 1, "--out", at.out],
        "",
        "out",
    ),
    "suite": Command("cdn.experiments.suite", lambda at: ["--out", at.out], "", "out"),
    "denoisers": experiment("denoisers", refuses=NOT_BOTH),
    "denoising_classifier": experiment("denoising_classifier", refuses=NOT_BOTH),
    "jacobian": experiment("jacobian", refuses=NO_DENSITY),
    "out_of_domain": experiment("out_of_domain", refuses="resnet classification denoiser"),
    "outliers": experiment("outliers", refuses="denoiser"),
    "photographs": experiment(
        "photographs", "--images", lambda at: at.images, reads=f"{MEASURED} images", refuses=NO_DENSITY
    ),
    "protect": experiment("protect", "--classifier", lambda at: at.other, refuses=NO_DENSITY),
    "reconstruction": experiment("reconstruction", refuses=NO_CLASSES),
    "restoration": experiment("restoration", refuses=NO_DENSITY),
    "robustness": experiment("robustness", refuses=NO_CLASSES),
    "sampling": experiment("sampling", refuses=NO_DENSITY),
    "similarities": experiment("similarities", refuses="resnet classification denoiser denoising"),
    "info": Command("cdn_kernels.info", lambda at: [], quick=True),
}


# what goes wrong


def edit_config(at, **changes):
    path = at.run / "config.json"
    config = json.loads(path.read_text())
    for part, values in changes.items():
        config[part] = config[part] | values if isinstance(values, dict) else values
    path.write_text(json.dumps(config))


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def foreign_weights(at):
    safetensors.torch.save_file({"weight": torch.zeros(3)}, at.run / "model.safetensors")


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


def make_place(root):
    place = Place(root, root / "run", root / "other", root / "image.png", root / "images", root / "results" / "out")
    shutil.copytree(FROZEN / "joint", place.run)
    shutil.copytree(FROZEN / "resnet", place.other)
    evaluation = json.dumps(dict(kind="evaluation", step=4, seconds=1.0, accuracy=0.5, psnr_25=None))
    with open(place.run / "metrics.jsonl", "a") as rows:  # a stopped run has none
        rows.write(evaluation + "\n")
    image = Image.new("L", (8, 8), 99)
    image.putpixel((3, 3), 200)
    image.save(place.image)
    for folder in (place.images, place.out.parent):
        folder.mkdir()
    shutil.copy(place.image, place.images / "a.png")
    return place


@pytest.fixture
def at(tmp_path):
    return make_place(tmp_path / "place")


def run(module, words, monkeypatch):
    """Run a command as ``python -m`` does, in this process, and return its status."""
    monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
        warnings.simplefilter("ignore")
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return stop.value.code


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


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if "data" in command.reads])
def test_errors_name_what_is_not_utf_8(tmp_path, name, monkeypatch, capsys):
    place = make_place(tmp_path / os.fsdecode(b"caf\xe9"))
    shutil.rmtree(place.run)
    assert run(COMMANDS[name].module, COMMANDS[name].words(place), monkeypatch) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "caf\\udce9" in printed
