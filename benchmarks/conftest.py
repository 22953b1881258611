"""Options, the fixture ``paired``, and the table at the end of ``pytest benchmarks/ --benchmark-only``."""

from contextlib import ExitStack
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.harness.agreement import agreement
from benchmarks.harness.ceilings import Work
from benchmarks.harness.paired import Paired, Settings
from benchmarks.harness.record import LIBRARY, check
from benchmarks.harness.table import summary
from benchmarks.harness.workers import Worker
from benchmarks.steps import DTYPES, TOLERANCE, Recorded
from cdn_kernels import machine

_RESULTS = pytest.StashKey[list]()


def pytest_addoption(parser):
    group = parser.getgroup("benchmarks of cdn")
    group.addoption(
        "--full",
        action="store_true",
        help="the whole grid of shapes, dtypes and layouts, and peers that compile for minutes at full size",
    )
    group.addoption(
        "--smoke",
        action="store_true",
        help="tiny tensors, two rounds, and without --full no case that takes long: only to see that all runs",
    )
    group.addoption("--rounds", type=int, help="rounds of every case (default: what fits --seconds, at least 6)")
    group.addoption("--seconds", type=float, default=1.5, help="what the rounds of a case may take (default: 1.5)")
    group.addoption("--threads", type=int, help="threads of the CPU (default: those of torch)")
    group.addoption(
        "--processor-time",
        action="store_true",
        help="of cases in processes of their own, count the time on processors: for machines that do other work, too",
    )
    group.addoption("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.addinivalue_line("markers", "no_smoke: a benchmark that is long even if tiny, or much like another")
    config.stash[_RESULTS] = []
    # Its table shows the library's times only; ours takes its place.
    config.option.benchmark_quiet = True
    if config.option.threads:
        torch.set_num_threads(config.option.threads)


def _device(config):
    return config.option.device or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def settings(pytestconfig):
    options = pytestconfig.option
    return Settings(
        _device(pytestconfig), options.rounds, options.seconds, options.smoke, options.full, options.processor_time
    )


@pytest.fixture
def paired(benchmark, settings, request):
    torch.manual_seed(0)
    command = f'pytest "{request.node.nodeid}" --benchmark-only'
    runner = Paired(benchmark, settings, command + " --full" * settings.full)
    yield runner
    if runner.result and runner.result.seconds:
        result = vars(runner.result)
        request.config.stash[_RESULTS].append(result)
        if settings.smoke:
            check(result)


@pytest.fixture
def compare(paired, settings):
    """Return a function (case, problem, step, peers, units) that times steps, each in a process of its own.

    The library's is step(problem, impl=...), recorded as ``cdn.train`` does it; on a GPU, and for steps that are small
    enough to be recorded on a CPU, there may be a peer that is not. Peers are (factory, arguments, ..., options) by
    name, and units the convolutions whose operations are the floor.
    """

    def run(case, problem, step, peers, units=None, calls=settings.device == "cuda", **facts):
        with ExitStack() as stack:
            start = lambda *args, **options: stack.enter_context(Worker(*args, **options))
            ours = (step, problem, settings.library)
            if calls:
                peers = {f"{LIBRARY}, call by call": (*ours, dict(keep_pages=True)), **peers}
            library = start(Recorded, *ours, keep_pages=True)
            peers = {name: start(*args, **options) for name, (*args, options) in peers.items()}
            for worker in (library, *peers.values()):
                worker.prepare()
            exactly = (step, replace(problem, precision="float32"))
            exact = (lambda: start(*exactly)) if problem.precision != "float32" else None
            work = Work(units.flops, dtype=DTYPES[problem.precision]) if units else None
            paired(
                f"{case}: {problem}",
                (LIBRARY, library),
                peers,
                work,
                agreement(library, TOLERANCE[problem.precision], exact),
                operation=case,
                **asdict(problem),
                **facts,
            )

    return run


def pytest_collection_modifyitems(config, items):
    """Leave out the cases marked ``full``, and those of a smoke run marked ``no_smoke``, unless all are asked for."""
    if config.option.full:
        return
    beyond = ["full", *(["no_smoke"] if config.option.smoke else [])]
    left_out = [item for item in items if any(map(item.get_closest_marker, beyond))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["cdn"] = machine.describe(_device(config))


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[_RESULTS]
    if not results:
        return
    terminalreporter.section("this library and its peers")
    for line in summary(results):
        terminalreporter.write_line(line)
