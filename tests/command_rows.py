"""Every command as a row of a table, and places with what they are given."""

import json
import runpy
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

import cdn
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
        "photographs", "--images", lambda at: at.images, reads="config weights images", refuses=NO_DENSITY
    ),
    "protect": experiment("protect", "--classifier", lambda at: at.other, refuses=NO_DENSITY),
    "reconstruction": experiment("reconstruction", refuses=NO_CLASSES),
    "restoration": experiment("restoration", refuses=NO_DENSITY),
    "robustness": experiment("robustness", refuses=NO_CLASSES),
    "sampling": experiment("sampling", refuses=NO_DENSITY),
    "similarities": experiment("similarities", refuses="resnet classification denoiser denoising"),
    "info": Command("cdn_kernels.info", lambda at: [], quick=True),
}


def edit_config(at, **changes):
    path = at.run / "config.json"
    config = json.loads(path.read_text())
    for part, values in changes.items():
        config[part] = config[part] | values if isinstance(values, dict) else values
    path.write_text(json.dumps(config))


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


def run(module, words, monkeypatch):
    """Run a command as ``python -m`` does, in this process, and return its status."""
    monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
        warnings.simplefilter("ignore")
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return stop.value.code
