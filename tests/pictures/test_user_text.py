"""Names of folders in pictures: dollars, underscores, bytes that are no letters, letters without a font, and TeX."""

import ast
import html
import json
import os
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import cdn
from cdn.cli.process import run_command
from cdn.commands import evaluate, train
from cdn.errors import CDNError
from cdn.evaluation.metrics import Reliability
from cdn.experiments import bounds, compare
from cdn.methods.learning_bounds import Bound
from cdn.pictures import style
from cdn.pictures.grid import draw_grid
from cdn.pictures.learning import bounds_figure
from cdn.pictures.plots import curves_picture, reliability_comparison
from cdn.pictures.robust_accuracy import certified_figure, robustness_figure
from cdn.pictures.run_comparison import Finished, comparison_picture
from cdn.pictures.style import attempt, named, save
from cdn.run_folder.config import RunConfig
from tests.faults import full_disk

ROOT = Path(cdn.__file__).parent
# A name, and what is drawn of it with the fonts of matplotlib alone.
NAMES = {
    "$$": "$$",
    "cost$2$": "cost$2$",
    r"a\$b\alpha$": r"a\$b\alpha$",
    "_baseline": "_baseline",
    "__": "__",
    os.fsdecode(b"caf\xe9"): r"caf\xe9",
    "\u732b": r"\u732b",
    "a\tb\x1b[1m": r"a\tb\x1b[1m",
    "{50%^_#~&": "{50%^_#~&",
    "σ é ß": "σ é ß",
}


@pytest.fixture
def with_tex(monkeypatch):
    """The settings of a user who has all text set by TeX, which is not here; and SVGs whose text can be read."""
    monkeypatch.setattr(style, "FALLBACKS", ())
    with matplotlib.rc_context({"text.usetex": True, "svg.fonttype": "none", "axes.formatter.use_mathtext": True}):
        yield


def drawn(path):
    """Return all texts of an SVG, those of several parts as one."""
    found = re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(), re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]*>|\n *", "", text)) for text in found]


def titles(names):
    figure = Figure()
    for axes, name in zip(figure.subplots(1, len(names)), names):
        axes.set(title=name, ylabel=name)
    return figure


def legends(names):
    figure = Figure()
    axes = figure.subplots()
    for name in names:
        axes.plot([1, 2], [1, 2], label=named(name))
    axes.legend()
    figure.legend(*axes.get_legend_handles_labels())
    return figure


def ticks(names):
    figure = Figure()
    left, middle, right = figure.subplots(1, 3)
    left.set_xticks(range(len(names)), names)
    middle.bar(names, range(len(names)))
    right.set(yticks=range(len(names)), yticklabels=names)
    return figure


def grid(names):
    images = torch.zeros(len(names), 1, 2, 2)
    return draw_grid([[(" ".join(names), images, names)]], names)


def certificates(names):
    rows = [dict(run=name, sigma=0.1, labels=[0], predicted=[0], radii=[1.0]) for name in names[:4]]
    return certified_figure(rows, " ".join(names))


def robust(names):
    runs = {name: dict(l2=dict(radii=[1.0], clean=0.9, robust=[0.5])) for name in names}
    return robustness_figure(dict(runs=runs, images=9), ["l2"], " ".join(names))


def bounded(names):
    return bounds_figure({name: Bound(0.1, 2.0 + k) for k, name in enumerate(names)}, [], 10, 1e4)


@pytest.mark.parametrize("make", [titles, legends, ticks, grid, certificates, robust, bounded])
def test_text_is_drawn_as_it_is(tmp_path, with_tex, make):
    save(make(list(NAMES)), tmp_path / "a.svg")
    text = "\n".join(drawn(tmp_path / "a.svg"))
    assert [name for name in NAMES.values() if name[:10] not in text] == []  # a grid shortens names


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_text_is_drawn_in_every_format(tmp_path, with_tex, suffix):
    save(legends(list(NAMES)), tmp_path / f"a{suffix}")


def test_pictures_that_are_written_at_once(tmp_path, with_tex):
    one = torch.full((4,), 0.5, dtype=torch.float64)
    reliability_comparison({name: Reliability(torch.full((4,), 9), one, one) for name in NAMES}, tmp_path / "a.svg")
    rows = [dict(kind="train", step=step, classification=1.0 / step, denoising=0.5) for step in (1, 2)]
    comparison_picture([Finished(n, RunConfig(), rows, {}) for n in NAMES], tmp_path / "b.svg")
    for path in (tmp_path / "a.svg", tmp_path / "b.svg"):
        text = "\n".join(drawn(path))
        assert [name for name in NAMES.values() if name not in text] == []


def test_powers_of_ten_stay_powers(tmp_path, with_tex):
    figure = Figure()
    upper, lower = figure.subplots(2)
    upper.plot([1, 1e5], [1, 1e5], label=named("$x$"))
    upper.set(xscale="log", yscale="log")
    lower.plot([0, 1], [0, 3e7])
    save(figure, tmp_path / "a.svg")
    text = drawn(tmp_path / "a.svg")
    assert "102" in text and "1e7" not in text, text  # an exponent is a part of its own
    assert not [part for part in text if "math" in part or "$" in part]


def test_a_font_that_has_the_letters_is_used(tmp_path, monkeypatch):
    """STIX has letters of mathematics that DejaVu lacks."""
    letter = next(chr(code) for code in style._glyphs(("STIXGeneral",)) - style._glyphs(("sans-serif",)))
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        monkeypatch.setattr(style, "FALLBACKS", ("STIXGeneral", "no such font"))
        save(titles([letter, "a"]), tmp_path / "a.svg")
    assert letter in drawn(tmp_path / "a.svg")


def test_the_settings_of_the_user_stay(tmp_path):
    with matplotlib.rc_context({"text.usetex": True, "font.family": ["serif"]}):
        before = dict(matplotlib.rcParams)
        save(titles(["a", "b"]), tmp_path / "a.png")
        assert dict(matplotlib.rcParams) == before


def calls():
    for path in ROOT.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT).as_posix(), node


def test_pictures_reach_the_disk_in_one_way_and_labels_pass_through_one_function():
    saved, labels = set(), []
    for path, call in calls():
        saved |= {path} if getattr(call.func, "attr", "") == "savefig" else set()
        if getattr(call.func, "attr", "") in ("plot", "bar", "barh", "axhline", "stairs", "errorbar", "scatter"):
            labels += [(path, k.value) for k in call.keywords if k.arg == "label"]
    assert saved == {"pictures/style.py"}
    free = [
        f"{path}: {ast.unparse(label)}"
        for path, label in labels
        if not isinstance(label, ast.Constant)
        and not (isinstance(label, ast.JoinedStr) and isinstance(label.values[0], ast.Constant))
        and getattr(getattr(label, "func", None), "id", "") != "named"
    ]
    assert len(labels) > 15 and not free, "legends leave out labels that begin with an underscore: wrap them in named()"


# runs


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A run whose classes and whose own name are hard to draw, trained by a user of TeX."""
    place = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("$$", os.fsdecode(b"caf\xe9"), "\u732b", "_x^{"):
            (place / "data" / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / "data" / split / name / f"{number}.png")
    run = place / os.fsdecode(b"_cost$2$ caf\xe9")
    options = "--data imagefolder --image-size 8 --batch-size 4 --mean 0 --model gradresnet-small --width 8 --steps 2"
    with matplotlib.rc_context({"text.usetex": True}):
        assert status(train, *options.split(), "--evaluations", 1, "--data-dir", place / "data", "--out", run) == 0
    return run


def status(command, *arguments):
    """Return the exit status of a command."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command.main([*map(str, arguments)]))
    return stop.value.code


def test_a_run_of_hard_names_ends_with_its_pictures(hostile_run, capsys):
    for name in train_pictures():
        (hostile_run / name).unlink()
    with matplotlib.rc_context({"text.usetex": True}):
        assert status(train, "--resume", hostile_run) == 0
    assert all((hostile_run / name).stat().st_size > 5000 for name in train_pictures())
    assert cdn.load(hostile_run).classes == ("$$", "_x^{", os.fsdecode(b"caf\xe9"), "\u732b")


def train_pictures():
    return ("denoising.png", "curves.png")


def test_no_picture_fails_a_run(hostile_run, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise RuntimeError("cannot\ndraw")

    monkeypatch.setattr(Figure, "savefig", fail)
    assert status(train, "--resume", hostile_run) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: there is no ")]
    assert len(notes) == 2 and all("cannot draw" in line for line in notes)
    assert status(evaluate, hostile_run, "--limit", 4) == 0
    assert json.loads((hostile_run / "evaluation.json").read_text())["classified"] == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert status(compare, hostile_run, "--out", hostile_run.with_name("comparison")) == 0
    assert capsys.readouterr().err.count("note: there is no ") == 2
    assert status(bounds, "--out", hostile_run.with_name("bounds")) == 0
    assert (hostile_run.with_name("bounds") / "report.json").exists()


def test_what_cannot_be_drawn_or_written_is_one_line(tmp_path, capsys):
    path, said = tmp_path / "a.png", []
    with full_disk():
        assert not attempt(lambda: save(Figure(), path), path, said.append)
    assert re.fullmatch(rf"note: there is no {path}: could not write .*: File too large; .* intact", said[0])
    assert not attempt(lambda: curves_picture(tmp_path / "none", path), path)
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(CDNError, match="expected a picture ending in"):
        save(Figure(), tmp_path / "a.xyz")
    with pytest.raises(KeyboardInterrupt):
        attempt(stop, path)


def stop():
    raise KeyboardInterrupt
