"""Who may import whom: the kernels know nothing of what is built on them, and no arrow between rooms of cdn is new.

A room is a module or a folder directly in `cdn/`; docs/architecture.md says what is in which. ARROWS may only shrink:
an arrow that is not in it fails, and one that is gone has to leave the list.
"""

import re
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]

# Files that only start a command of the same name, by `python -m`.
STARTERS = {"train", "evaluate", "denoise", "classify", "certify"}
# The rooms, from the ground up: each imports from those before it alone.
ROOMS = ("errors", "files", "processes", "model", "noise_keys", "images", "data", "objective", "run_folder")
ROOMS += ("evaluation", "methods", "pictures", "training", "cli", "experiments", "commands")
ARROWS = {
    "cli": "errors images model processes run_folder training",
    "commands": "cli errors evaluation experiments files images methods model pictures processes run_folder training",
    "data": "errors images noise_keys",
    "evaluation": "data errors model noise_keys processes",
    "experiments": (
        "cli data errors evaluation files images methods model noise_keys pictures processes run_folder training"
    ),
    "files": "errors",
    "images": "errors files model",
    "methods": "errors evaluation files images model noise_keys processes run_folder",
    "model": "errors",
    "objective": "model",
    "pictures": "data errors evaluation files methods model noise_keys run_folder",
    "processes": "errors",
    "run_folder": "data errors files model",
    "training": "data errors evaluation files model noise_keys objective pictures processes run_folder",
}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("cdn", "cdn_kernels", "benchmarks", cache_dir=None, exclude_type_checking_imports=True)


def package(module):
    return module.partition(".")[0]


def room(module):
    return module.split(".")[1]


def arrows(graph):
    """Yield pairs of modules, of which the first imports the second."""
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            yield importer, imported


def rooms(graph):
    """Return {room: the rooms of cdn that it imports}, without the package itself, which is the public API."""
    found = {}
    for importer, imported in arrows(graph):
        inside = all(module.startswith("cdn.") for module in (importer, imported))
        if inside and room(importer) not in STARTERS and room(importer) != room(imported):
            found.setdefault(room(importer), set()).add(room(imported))
    return found


def test_packages_know_only_what_is_below_them(graph):
    below = {"cdn_kernels": set(), "cdn": {"cdn_kernels"}, "benchmarks": {"cdn", "cdn_kernels"}}
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in arrows(graph)
        if package(imported) not in {package(importer), *below[package(importer)]}
    ]
    assert not wrong
    assert {package(module) for module in graph.modules} == set(below)


def test_no_arrow_between_rooms_is_new(graph):
    new = [
        f"{a} -> {b}"
        for a, others in rooms(graph).items()
        for b in sorted(others)
        if b not in ARROWS.get(a, "").split()
    ]
    assert not new, "import what is there already by another way, or move the code to where it belongs"


def test_the_list_of_arrows_only_shrinks(graph):
    found = rooms(graph)
    gone = [f"{a} -> {b}" for a, others in ARROWS.items() for b in others.split() if b not in found.get(a, ())]
    assert not gone, "these are no more: take them off the list"


def test_every_arrow_runs_down(graph):
    found = {room(module) for module in graph.modules if module.startswith("cdn.")} - STARTERS
    assert found == set(ROOMS) and len(ROOMS) <= 16
    up = [f"{a} -> {b}" for a, others in rooms(graph).items() for b in others if ROOMS.index(b) >= ROOMS.index(a)]
    assert not up


def test_starters_start_and_do_no_more(graph):
    for starter in sorted(STARTERS):
        imported = {m for m in graph.find_modules_directly_imported_by(f"cdn.{starter}") if m != "cdn"}
        assert imported == {"cdn.cli.process", f"cdn.commands.{starter}"}
        assert len((ROOT / "cdn" / f"{starter}.py").read_text().splitlines()) <= 16


def test_methods_know_no_command_line_and_models_no_methods(graph):
    for module in graph.modules:
        if module.startswith(("cdn.methods", "cdn.model", "cdn.pictures", "cdn.evaluation", "cdn.data")):
            text = Path(module_file(module)).read_text()
            assert "argparse" not in text and "cdn.experiments" not in text, module


def module_file(module):
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_kinds_of_models_are_told_apart_in_one_room():
    kinds = re.compile(r"isinstance\([^)]*(?:Network|GradResNet|ResNet|DirectDenoiser|Trunk|nn\.Module)")
    found = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("cdn/**/*.py") if kinds.search(path.read_text())}
    assert found == {"cdn/model/capabilities.py"}


def test_experiments_are_short():
    frame = {"__init__.py", "options.py", "runner.py", "stages.py"}
    lengths = {path.name: len(path.read_text().splitlines()) for path in ROOT.glob("cdn/experiments/*.py")}
    assert len(lengths) > 15 and {name: n for name, n in lengths.items() if name not in frame and n > 80} == {}
