"""Runs of an experiment that trains: each is trained once, or resumed, and leaves a row."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cdn.data import load_dataset
from cdn.errors import CDNError
from cdn.files import Results
from cdn.run_folder.config import read_config
from cdn.run_folder.names import CONFIG
from cdn.training.loop import train
from cdn.training.settings import Settings

# The objective, the number of training images and the seed of a run.
Plan = tuple[str, int, int]


def train_once(folder: Path, plan: Plan, settings: Settings, device: torch.device) -> Results | None:
    """Train one model, or go on with it, and return its row; None if it was interrupted.

    Raises:
        CDNError: the folder holds a run of other settings.
    """
    resume = (folder / CONFIG).exists()
    if resume and not Settings.from_dict(read_config(folder).training).agree(settings):
        raise CDNError(f"{folder} holds a run of other settings: remove it, or choose another --out")
    start = time.perf_counter()
    result = train(settings, folder, device, resume=resume)
    if result is None:
        return None
    shares = {suffix: result[f"accuracy{suffix}"] for suffix in ("", "_noisy")}
    errors = {f"error{suffix}": None if share is None else 1 - share for suffix, share in shares.items()}
    return dict(
        settings=settings.as_dict(),
        **dict(zip(("objective", "n", "seed"), plan)),
        **errors,
        denoising_loss=result["denoising_loss"],
        seconds=round(time.perf_counter() - start, 1),
    )


def same_steps(row: Results, settings: Settings) -> bool:
    """Say whether a row is that of a run of the same steps."""
    return Settings.from_dict(row["settings"]).agree(settings)


def check_sizes(sizes: Sequence[int], settings: Settings) -> None:
    """Refuse sizes that the data or the batch do not allow before any time is spent."""
    dataset = load_dataset(settings.data, settings.data_dir, image_size=settings.image_size)
    if min(sizes) < settings.batch_size or max(sizes) > len(dataset.train):
        raise CDNError(
            f"--sizes: expected {settings.batch_size} (one batch) to {len(dataset.train)} (all images), "
            f"got {min(sizes)} to {max(sizes)}"
        )
