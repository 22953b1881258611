"""A record of the benchmarks, made by their harness in this process: a few tiny cases, measured as all are."""

import json

import torch

from benchmarks import page
from benchmarks.harness.ceilings import Work
from benchmarks.harness.paired import Paired, Settings
from cdn_kernels import machine

OPERATIONS = [operation for section in page.SECTIONS for operation in section.operations]


class Benchmark:
    """What the harness uses of pytest-benchmark's fixture."""

    disabled = False

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, target, args=(), setup=lambda: None, rounds=1):
        for _ in range(rounds):
            setup()
            target(*args)


def settings(rounds):
    return Settings(device="cpu", rounds=rounds, seconds=1.0, smoke=False, full=False)


def measured(operation, work, batch=64, memory=False, **facts):
    """Measure a sum of squares beside another; return the extra_info of pytest-benchmark."""
    x, benchmark = torch.rand(1000), Benchmark()
    paired = Paired(benchmark, settings(2), 'pytest "benchmarks/test_some.py::test_sum" --benchmark-only')
    paired(
        f"{operation}: {batch} images",
        ("this library", lambda: x.square().sum()),
        {next(iter(page.EAGER)): lambda: (x * x).sum()},
        work,
        memory=memory,
        operation=operation,
        batch=batch,
        **facts,
    )
    return benchmark.extra_info


def write(path):
    """Write what pytest-benchmark does of a run with cases of every operation that the page knows; return the path."""
    results = [measured(operation, Work(bytes=4000)) for operation in OPERATIONS if operation != "scaling"]
    for batch, work in ((8, Work(flops=1000, dtype=torch.float32)), (32, Work(bytes=4000))):
        results.append(measured("scaling", work, batch, memory=True, axis="batch", value=batch))
    run = dict(
        benchmarks=[dict(fullname=f"benchmarks/{i}", extra_info=result) for i, result in enumerate(results)],
        datetime="2000-01-01T00:00:00+00:00",
        machine_info=dict(cdn=machine.describe("cpu")),
    )
    path.write_text(json.dumps(run))
    return path
