"""One process of a training that is timed: started by torchrun, or alone; writes what it measured as JSON.

torchrun --nproc-per-node 2 -m benchmarks.distributed.worker PROBLEM FOLDER
"""

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist

import cdn_kernels
from cdn.data import Dataset
from cdn.data.split import MemorySplit
from cdn.processes import Processes, joined
from cdn.training.muon import Muon
from cdn.training.muon_division import Division
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from cdn_kernels.phases import watch

CPU = torch.device("cpu")
# Images of random numbers take the time of others. The recipe of CIFAR-10 at the batch of the other benchmarks.
PROBLEMS = {
    "photographs": (dict(data="cifar10", batch_size=64), (3, 32, 32)),
    "digits": (dict(data="digits"), (1, 8, 8)),
}
STEPS = {"photographs": (2, 4), "digits": (20, 40)}  # before what is timed, and timed
SIZES = {"4 bytes": 1, "8 MiB": 1 << 21}  # of all-reduces in float32, whose time tells what the link is like


class Watched(Processes):
    """Processes that note when the first sum of a step begins."""

    began = None

    def adding(self, tensor):
        """Begin a sum, as others do."""
        if Watched.began is None:
            Watched.began = time.perf_counter()
        return super().adding(tensor)


class Clock:
    """Add up the seconds of each phase."""

    def __init__(self):
        self.seconds, self.started = {}, {}

    @contextlib.contextmanager
    def __call__(self, name):
        start = self.started[name] = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def trainer_of(problem, processes, **options):
    """Return the trainer of a problem, on images of random numbers."""
    settings, shape = PROBLEMS[problem]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1024, *shape), dtype=torch.uint8, generator=generator)
    split = MemorySplit(images, torch.arange(1024) % 10)
    data = Dataset(problem, split, split, tuple(map(str, range(10))))
    settings = Settings(**(settings | options), fused=True)
    return Trainer(settings, data, 1000, CPU, say=lambda text: None, processes=processes)


def measured(problem, processes):
    """Return seconds of whole steps, of their phases, and of sums over the link."""
    cdn_kernels.keep_pages()
    trainer = trainer_of(problem, Watched(processes.rank, processes.count))
    warm, count = STEPS[problem]
    for _ in range(warm):
        trainer.advance()
    steps = [_seconds(trainer.advance) for _ in range(count)]
    phases, windows = [], []
    for _ in range(max(count // 2, 3)):
        Watched.began, clock = None, Clock()
        with watch(clock):
            whole = _seconds(trainer.advance)
        phases.append(clock.seconds | dict(step=whole))
        if processes.count > 1:
            windows.append(max(clock.started["exchange"] - Watched.began, 0.0))
    median = lambda rows: {name: statistics.median(row.get(name, 0.0) for row in rows) for name in rows[0]}
    return dict(
        step=statistics.median(steps),
        phases=median(phases),
        window=statistics.median(windows) if windows else None,
        images=trainer.settings.batch_size,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        muon_divided=_divided(trainer),
        threads=torch.get_num_threads(),
        link={name: _sum_seconds(size) for name, size in SIZES.items()} if processes.count > 1 else {},
    )


def _divided(trainer):
    """Return whether the work of Muon is divided, None where it cannot be."""
    ways = [member.orthogonalized for member in trainer.optimizer.members if isinstance(member, Muon)]
    return next((way.divided for way in ways if isinstance(way, Division)), None)


def _seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _sum_seconds(size):
    tensor = torch.zeros(size)
    times = [_seconds(lambda: dist.all_reduce(tensor)) for _ in range(6)]
    return statistics.median(times[1:])


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed.worker", description=__doc__)
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("folder", type=Path, help="where each process writes RANK.json")
    args = parser.parse_args(argv)
    with joined(CPU) as processes:
        found = measured(args.problem, processes)
        (args.folder / f"{processes.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
