"""Networks of all kinds, those of other packages among them, against eager double backward."""

from contextlib import ExitStack

import pytest

from benchmarks.harness.agreement import agreement
from benchmarks.harness.record import LIBRARY
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
        start = lambda *step: stack.enter_context(Worker(NetworkStep, name, size, *step, keep_pages=True))
        *others, library = (start("library", layout) for layout in layouts)
        peers = {f"{LIBRARY}, {layout}": other for layout, other in zip(layouts, others)}
        peers |= {f"eager, {layout}": start("eager", layout) for layout in layouts}
        paired(
            f"{name}, {size}",
            (f"{LIBRARY}, {layouts[-1]}", library),
            peers,
            agree=agreement(library, network.tolerance),
            operation="network",
            network=name,
            size=size,
            package=network.package,
            version=network.version,
        )
