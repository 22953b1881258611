"""A trained run, opened: its model, the data it was trained on, and the noise levels of its training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cdn.data import Dataset, load_dataset
from cdn.errors import CDNError, CheckpointError
from cdn.model import Network
from cdn.model import capabilities as capabilities
from cdn.run_folder.config import RunConfig, read_config
from cdn.run_folder.shipped import locate
from cdn.run_folder.weights import load
from cdn_kernels import NoiseLevels


@dataclass(frozen=True)
class Run:
    """What :func:`open_run` found in a run folder.

    Attributes:
        path: the run folder.
        model: in evaluation mode, on the device that was asked for; ``model.classes`` are the names of its classes.
        config: its configuration.
        source: what :func:`cdn.data.load_dataset` takes to load the data of the training.
        levels: the noise levels of the training.
    """

    path: Path
    model: Network
    config: RunConfig
    source: dict[str, Any]
    levels: NoiseLevels

    @cached_property
    def dataset(self) -> Dataset:
        """The data of the training, loaded when first asked for: not every measurement needs it.

        Raises:
            DataError: data that cannot be read.
            CDNError: data of other classes than those of the training.
        """
        dataset, classes = load_dataset(**self.source), tuple(self.config.classes or ())
        if dataset.classes != classes:
            raise CDNError(
                f"{self.path}: was trained on {len(classes)} classes, {_few(classes)}, "
                f"but {dataset.name} has {len(dataset.classes)}, {_few(dataset.classes)}"
            )
        return dataset

    @property
    def has_density(self) -> bool:
        """Whether its logits were trained to be log-densities, which cross-entropy alone does not make them."""
        return capabilities.has_density(self.model, self.config.objective)

    @property
    def denoises(self) -> bool:
        """Whether it has a density, or is a denoiser."""
        return capabilities.denoises(self.model, self.config.objective)

    @property
    def has_classes(self) -> bool:
        """Whether the model was trained to classify."""
        return capabilities.classifies(self.model, self.config.objective)


def by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """Return a dict of runs by the names of their folders, or by their paths where names would be the same.

    Raises:
        CDNError: a run is among them twice.
    """
    names = [run.path.resolve().name for run in runs]
    named = {name if names.count(name) == 1 else str(run.path): run for name, run in zip(names, runs)}
    if len(named) < len(runs):
        raise CDNError("expected different runs, got one of them twice")
    return named


def open_run(path: str | Path, device: str | torch.device = "cpu", data_dir: str | Path | None = None) -> Run:
    """Open a run folder for measurements.

    Args:
        path: the run folder, or the name of a model that comes with the package.
        device: where to put the model.
        data_dir: folder of the data; None for that of the training.

    Raises:
        CheckpointError: no run folder, or a damaged one.
    """
    path = locate(path)
    model, config = load(path, device), read_config(path)
    try:
        data, levels = config.data, config.levels
        source = dict(name=data["name"], data_dir=data_dir or data["data_dir"], image_size=data["image_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: config.json lacks or misstates what its data and noise levels are: {error}"
        ) from None
    if source["name"] == "imagefolder" and source["image_size"] is None:  # as it was once left open
        source["image_size"] = config.image_side
    return Run(path, model, config, source, levels)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
