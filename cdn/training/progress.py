"""Averages over steps, and the progress bar."""

import datetime
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm


class Averages:
    """Average scalars of the training steps on the device, leaving out what is not finite."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.images, self.start = 0, time.perf_counter()

    def add(self, images: int, values: Mapping[str, Tensor]) -> None:
        """Record the scalars of one step over a number of images."""
        self.images += images
        for name, value in values.items():
            finite = torch.isfinite(value)
            self.sums[name] = self.sums.get(name, 0) + torch.where(finite, value, 0.0)
            self.counts[name] = self.counts.get(name, 0) + finite

    def take(self, waited: float | None = None) -> dict[str, float]:
        """Return the averages, images/s and the share of time that was waited, as numbers, since the last call.

        Args:
            waited: seconds since then that steps waited for images; None where these need no decoding.
        """
        row = {
            name: float(self.sums[name]) / int(self.counts[name]) if int(self.counts[name]) else float("nan")
            for name in self.sums
        }
        seconds = max(time.perf_counter() - self.start, 1e-9)
        row["images_per_second"] = self.images / seconds
        if waited is not None:
            row["waiting"] = waited / seconds
        self._restart()
        return row


class Progress:
    """Show where training is: losses, images/s, time left, and the last evaluation.

    Args:
        total: number of steps.
        first: steps already done.
        show: True for a bar, False for silence; None for a bar on terminals and a line per evaluation elsewhere.
    """

    def __init__(self, total: int, first: int = 0, show: bool | None = None) -> None:
        self.show = show
        self.bar = tqdm(
            total=total,
            initial=first,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            disable=None if show is None else not show,
        )
        self.total = total
        self.fields: dict[str, str] = {}

    def advance(self) -> None:
        """Count one step as done."""
        self.bar.update()

    def update(self, row: Mapping[str, Any]) -> None:
        """Show the figures of a row of the metrics file, whichever it has."""
        shown = {
            "classification": ("CE", "{:.3f}"),
            "denoising": ("DSM", "{:.3f}"),
            "contrastive": ("contrast", "{:.2f}"),
            "images_per_second": ("img/s", "{:.0f}"),
            "waiting": ("waits for images", "{:.0%}"),
            "accuracy": ("val acc", "{:.1%}"),
            "psnr_50": ("val PSNR", "{:.2f} dB"),
        }
        for key, (label, form) in shown.items():
            if row.get(key) is not None:
                self.fields[label] = form.format(row[key])
        text = ", ".join(f"{k} {v}" for k, v in self.fields.items())
        self.bar.set_postfix_str(text)
        if self.bar.disable and self.show is None and row.get("kind") == "evaluation":
            elapsed = datetime.timedelta(seconds=round(row["seconds"]))
            print(f"step {row['step']} of {self.total} after {elapsed}: {text}", flush=True)

    def say(self, text: str) -> None:
        """Print a line without tearing the bar, unless silence was asked for."""
        if self.show is not False:
            tqdm.write(text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
