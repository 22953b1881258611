"""Steps of a trainer as one process of several takes them, for tests that compare them with those of one alone."""

import torch

from cdn.data import load_dataset
from cdn.processes import ALONE
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer

CPU = torch.device("cpu")
STEPS, SKIPPED, POISONED = 20, 7, 3  # a step that is skipped, for the place of one image that is not finite


class Watched(Trainer):
    """A trainer with one step that is not finite, in any precision.

    Where steps are recorded, whose images are not asked for again, the weight of a term is nan in it, else an image.
    """

    def prepare(self):
        super().prepare()
        if self.step == SKIPPED:
            self.denoising_weight.fill_(float("nan"))

    def batch(self):
        x, labels = super().batch()
        x = x.to(next(self.model.parameters()).dtype)
        first = self.processes.share(self.settings.batch_size).start
        batch_norm = self.settings.model.startswith("resnet")  # whose statistics would remember it
        if self.step == SKIPPED and not batch_norm and first <= POISONED < first + len(x) and not self.settings.fused:
            x[POISONED - first] = float("nan")
        return x, labels


def settings_of(**options):
    """Return settings with all that a step can have: Muon, clipping, an average, clean images."""
    given = dict(width=8, batch_size=16, steps=STEPS, optimizer="muon", clip=0.5, ema=0.9, clean_share=0.4, warmup=5)
    return Settings(**(given | dict(fused=False) | options))


def take_steps(processes=ALONE, options=None, dtype=torch.float32, state=None, until=STEPS):
    """Take the steps of a run from a state on, or from the start, and return the state after them.

    Args:
        processes: that take them together.
        options: of :func:`settings_of`.
        dtype: of all numbers.
        state: to go on from.
        until: the number of steps in all.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        settings = settings_of(**(options or {}))
        trainer = Watched(settings, load_dataset("digits"), STEPS, CPU, say=said, processes=processes)
        if state is not None:
            trainer.restore(state)
        rows = []
        while trainer.step < until:
            rows.append({name: float(value) for name, value in trainer.advance().items()})
        overlapped = trainer.reduction is not None and trainer.reduction.overlapping
        return dict(trainer.state(), rows=rows, overlapped=overlapped)
    finally:
        torch.set_default_dtype(before)


def said(text):
    """Let nothing be said of steps: they are recorded, or were not meant to be."""
    raise AssertionError(text)
