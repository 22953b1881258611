"""The configuration of a run, ``config.json``: one schema for those that write it and those that read it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cdn.errors import CheckpointError
from cdn.files import json_text, write_atomically
from cdn.run_folder.forms import misfit, read_json
from cdn.run_folder.names import CONFIG
from cdn_kernels import NoiseLevels

# The form of the entries of a configuration. Each may be missing, as some are in files of old versions.
_FORM = dict(
    data=dict(
        name=str, data_dir=str | None, image_size=int | None, train_images=int | None, test_images=int, shape=[int]
    ),
    classes=[str],
    model=dict(kind=str),
    training=dict(objective=str | None, sigma_law=str, sigma_low=float, sigma_high=float, clean=str),
)


@dataclass(frozen=True)
class RunConfig:
    """What ``config.json`` says: how to repeat a run, and what a reader of its model needs. The fields are its keys.

    Only ``model`` is in every file; None, or nothing, stands for what a file lacks.

    Attributes:
        cdn, torch, threads: versions, and the number of threads, of the start.
        data: name, data_dir, image_size, train_images and test_images (their numbers), and shape, [C, H, W].
        classes: their names.
        model: what :func:`cdn.model.build` makes the network of.
        parameters, total_steps: their numbers.
        training: the settings, :class:`cdn.training.settings.Settings` as a dict.
    """

    cdn: str | None = None
    torch: str | None = None
    threads: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    total_steps: int | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def objective(self) -> str | None:
        """What the run was trained on; None in runs that do not say."""
        return self.training.get("objective")

    @property
    def levels(self) -> NoiseLevels:
        """The noise levels of the training, of which every image gets one.

        Raises:
            KeyError, TypeError, ValueError: they are missing, or none.
        """
        training = self.training
        return NoiseLevels(training.get("sigma_law", "log-uniform"), training["sigma_low"], training["sigma_high"])

    @property
    def image_side(self) -> int | None:
        """The side of the training images; None if nothing tells it."""
        # Only image folders have a size to choose; the shape tells that of every data set.
        return (self.data.get("shape") or [self.data.get("image_size")])[-1]

    def with_data_dir(self, data_dir: str | None) -> "RunConfig":
        """Return the configuration of a run whose data has moved."""
        moved = {part: getattr(self, part) | dict(data_dir=data_dir) for part in ("training", "data")}
        return RunConfig(**(vars(self) | moved))

    def fingerprint(self) -> dict[str, Any]:
        """Return the part of the fingerprint of the data that the configuration holds, for runs that have none."""
        whole = self.training.get("train_images") is None
        counts = dict(train=self.data.get("train_images") if whole else None, test=self.data.get("test_images"))
        known = dict(classes=self.classes, shape=self.data.get("shape"))
        known |= {split: dict(images=count) for split, count in counts.items() if count is not None}
        return {key: value for key, value in known.items() if value is not None}


def read_config(run: str | Path) -> RunConfig:
    """Read ``config.json`` of a run folder.

    Raises:
        CheckpointError: it is missing, or not the configuration of a run.
    """
    path = Path(run) / CONFIG
    try:
        found = read_json(path)
    except OSError as error:
        raise CheckpointError(f"{run} is no run folder: {path} cannot be read ({error.strerror})") from None
    if not isinstance(found, Mapping) or "model" not in found:
        raise CheckpointError(f"{path} is not the configuration of a run of this package")
    if wrong := misfit(found, _FORM):
        raise CheckpointError(f"{path} is damaged: {wrong}")
    return RunConfig(**{key.name: found[key.name] for key in fields(RunConfig) if key.name in found})


def write_config(run: str | Path, config: RunConfig) -> None:
    """Write ``config.json`` of a run folder."""
    content = {key: value for key, value in asdict(config).items() if value is not None}
    write_atomically(Path(run) / CONFIG, (json_text(content, indent=2) + "\n").encode())
