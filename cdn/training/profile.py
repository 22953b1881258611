"""The time of each phase of a training step, and the bytes that its operations touch."""

import copy
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cdn.files import json_text, write_atomically
from cdn.pictures.tables import record_table
from cdn.training.trainer import Trainer
from cdn_kernels.phases import watch
from cdn_kernels.torch_private import TorchDispatchMode, tensors_in

PHASES = ("waiting", "data", "sampler", "noise", "forward", "score", "backward", "exchange", "optimizer")


# Steps before measuring, and steps whose median time is taken.
WARM_UP, REPEATS = 3, 7
# A phase, its milliseconds, their share of the step, and its bytes.
Row = dict[str, Any]


def profile_steps(trainer: Trainer) -> list[Row]:
    """Measure the phases of a training step, and return a row of each.

    The trainer is left exactly as found. Bytes are those of all inputs and outputs of the operations that PyTorch
    executed, each counted once per operation that touches it: what the step would move without caches. Time and bytes
    are taken in different steps, since counting is slow.

    Args:
        trainer: a :class:`cdn.training.trainer.Trainer`.
    """
    state = copy.deepcopy(trainer.state())
    clock, traffic = _Clock(trainer.device), _Traffic()
    for _ in range(WARM_UP):
        trainer.advance()
    with watch(clock):
        for _ in range(REPEATS):
            with clock("step"):
                trainer.advance()
            clock.finish()
    with watch(traffic), traffic("step"):
        trainer.advance()
    trainer.restore(state)
    times = {name: sorted(values)[len(values) // 2] for name, values in clock.steps.items()}
    times["other"] = max(times["step"] - sum(times.get(name, 0.0) for name in PHASES), 0.0)
    moved = dict(traffic.moved)
    moved["other"] = moved["step"] - sum(moved.get(name, 0) for name in PHASES)
    return [
        dict(phase=name, milliseconds=1e3 * times[name], share=times[name] / times["step"], bytes=moved.get(name, 0))
        for name in (*PHASES, "other", "step")
        if name in times
    ]


def write_profile(rows: Sequence[Row], path: str | Path) -> None:
    """Write rows of phases as JSON."""
    write_atomically(path, (json_text(dict(repeats=REPEATS, phases=rows), indent=2) + "\n").encode())


def profile_text(rows: Sequence[Row]) -> str:
    """Return rows of phases as a table."""
    return record_table(
        {
            "phase": row["phase"],
            "ms": f"{row['milliseconds']:.2f}",
            "share": f"{row['share']:.1%}",
            "MB touched": f"{row['bytes'] / 1e6:.1f}",
        }
        for row in rows
    )


def memory_text(device: torch.device) -> str:
    """Return in words how much memory there was in use at the peak so far: of a GPU, or of the whole process."""
    if device.type == "cuda":
        return f"peak memory on {device}: {torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB"
    unit = 1 if sys.platform == "darwin" else 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"peak memory of the process: {size / 2**20:,.0f} MiB"


class _Clock:
    """Time phases; a phase entered twice in a step counts as one."""

    def __init__(self, device: torch.device) -> None:
        self.wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.current: dict[str, float] = {}
        self.steps: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        self.current[name] = self.current.get(name, 0.0) + time.perf_counter() - start

    def finish(self) -> None:
        for name, seconds in self.current.items():
            self.steps.setdefault(name, []).append(seconds)
        self.current = {}


class _Traffic:
    """Count the bytes that the operations of each phase read and write."""

    def __init__(self) -> None:
        self.moved: dict[str, int] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with _CountBytes() as mode:
            yield
        self.moved[name] = self.moved.get(name, 0) + mode.bytes


class _CountBytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,  # an operation of torch
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            # Expanded tensors touch only the memory that they have.
            self.bytes += sum(
                min(t.numel() * t.element_size(), t.untyped_storage().nbytes())
                for t in tensors_in((args, kwargs, result))
            )
        return result
