"""Networks of all kinds, those of other packages among them, against eager double backward."""

from contextlib import ExitStack

import pytest

from benchmarks.harness.agreement import agreement
from benchmarks.harness.record import LIBRARY
from benchmarks.harness.turns import Turns
from benchmarks.harness.workers import Worker
from benchmarks.networks import NETWORKS, SIZES, SPATIAL
from benchmarks.networks.steps import LAYOUTS, NetworkStep


@pytest.mark.parametrize(
    "size", [size if size == SIZES[0] else pytest.param(size, marks=pytest.mark.full) for size in SIZES]
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.no_smoke if place else ()) for place, name in enumerate(NETWORKS)]
)
def test_network(paired, settings, name, size):
    network = NETWORKS[name]
    if network.missing:
        pytest.skip(network.missing)
    if settings.device != "cpu":
        pytest.skip("networks of other packages were built for CPUs only")
    layouts = list(LAYOUTS) if network.kind == SPATIAL else ["contiguous"]
    with ExitStack() as stack:
        # Whether the allocator happens to return memory at every step, or at none, is worth 20 % of a small step.
        start = lambda *case: stack.enter_context(Worker(*case, keep_pages=True))
        ways = {
            f"{words}, {layout}": (NetworkStep, name, size, way, layout)
            for words, way in ((LIBRARY, "library"), ("eager", "eager"))
            for layout in layouts
        }
        alone = {words: start(*way) for words, way in ways.items()}
        for worker in alone.values():  # what they import takes longest: beside each other
            worker.prepare()
        library = f"{LIBRARY}, {layouts[-1]}"
        clock = "processor" if settings.processor_time else "wall"
        paired(
            f"{name}, {size}",
            (library, alone[library]),
            {words: worker for words, worker in alone.items() if words != library},
            agree=agreement(alone[library], network.tolerance),
            memory=size != SIZES[0],  # small networks hold less than the libraries around them
            turns=start(Turns, ways, clock),
            operation="network",
            network=name,
            size=size,
            package=network.package,
            version=network.version,
        )
