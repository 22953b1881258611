"""Who may import whom: the kernels know nothing of what is built on them, and no arrow between rooms of cdn is new.

A room is a module or a folder directly in `cdn/`. ARROWS is what is, not what should be: it may only shrink. An arrow
that is not in it fails the first test of rooms, one that is gone has to leave the list.
"""

from graphlib import TopologicalSorter

import grimp
import pytest

ARROWS = {
    "analysis": "density errors evaluation finite model modes",
    "certification": "density evaluation finite model modes",
    "certify": "certification cli experiments journal store",
    "classify": "cli density errors evaluation finite model store",
    "cli": "errors",
    "data": "errors",
    "denoise": "cli density errors evaluation model store",
    "density": "finite model",
    "distance": "density model quadrature",
    "evaluate": "cli evaluation finite runs store",
    "evaluation": "data density errors finite model modes store",
    "experiments": "analysis certification cli data denoise density errors evaluation finite journal model modes "
    "objective prior quadrature reconstruction robustness runs store train training",
    "finite": "errors",
    "journal": "errors finite store",
    "modes": "cli errors",
    "objective": "finite model",
    "prior": "density model",
    "reconstruction": "analysis density errors evaluation finite model quadrature robustness store",
    "robustness": "finite",
    "runs": "data errors model store",
    "store": "errors finite model",
    "train": "cli errors model store training",
    "training": "data density errors evaluation finite model objective store",
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
        if inside and room(importer) != room(imported):
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


def test_rooms_have_no_circle(graph):
    tuple(TopologicalSorter(rooms(graph)).static_order())  # which raises CycleError, with the circle
