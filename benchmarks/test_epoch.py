"""A whole epoch of ``cdn.train`` on the bundled digits: batches, augmentation, step, optimizer, average."""

from contextlib import ExitStack

import pytest
import torch

from benchmarks.harness.agreement import agreement
from benchmarks.harness.workers import Worker
from benchmarks.steps import TOLERANCE
from cdn.data import load_dataset
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer


class Epoch:
    """An epoch from fresh weights.

    Args:
        steps: at most so many.
        options: fields of :class:`cdn.training.settings.Settings`.
    """

    def __init__(self, steps, device, **options):
        self.settings = Settings(data="digits", **options)
        self.dataset = load_dataset("digits")
        self.steps = min(steps, len(self.dataset.train) // self.settings.batch_size)
        self.device = torch.device(device)

    def __call__(self):
        """Train; return the loss of the last step."""
        self.trainer = Trainer(self.settings, self.dataset, self.steps, self.device)
        for _ in range(self.steps):
            scalars = self.trainer.advance()
        return float(scalars["loss"])

    def result(self):
        """Return the weights as one vector."""
        return torch.cat([p.detach().float().cpu().flatten() for p in self.trainer.model.parameters()])


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.full), "bf16"])
def test_epoch(paired, settings, precision):
    steps, tiny = (2, dict(width=8, batch_size=16)) if settings.smoke else (1000, {})
    with ExitStack() as stack:
        start = lambda fused: stack.enter_context(
            Worker(Epoch, steps, settings.device, keep_pages=fused, fused=fused, precision=precision, **tiny)
        )
        library = start(True)
        paired(
            f"an epoch of cdn.train on digits, {precision}",
            ("this library, --fused", library),
            {"eager, --no-fused": start(False)},
            agree=agreement(library, TOLERANCE[precision]),
            operation="epoch",
            precision=precision,
        )
