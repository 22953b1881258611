"""What a run leaves on disk, and how it is written so that a crash cannot tear it."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cdn.errors import CDNError, CheckpointError
from cdn.finite import json_text
from cdn.model import Network, build

CONFIG, WEIGHTS, METRICS = "config.json", "model.safetensors", "metrics.jsonl"
FORMAT = "cdn-model-1"


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Replace a file by bytes so that a reader, or a crash at any moment, finds the old content or the new.

    Raises:
        CDNError: the disk is full or the folder cannot be written; the old content is intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself has to survive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CDNError(f"could not write {path}: {error.strerror}; what was there before is intact") from None


def save_model(path: str | Path, model: Network, classes: Sequence[str] = ()) -> None:
    """Write the weights of a model as safetensors, with what it takes to build it again.

    Args:
        path: the file.
        model: a model of :mod:`cdn.model`.
        classes: names of the classes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = dict(format=FORMAT, model=json_text(model.config), classes=json_text(list(classes)))
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def read_safetensors(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, by name, and its metadata.

    Args:
        path: the file, a ``Path``.
        expected: what to say was expected if there is none.

    Raises:
        CheckpointError: the file is missing or torn, or holds a tensor that is not finite.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: expected {expected}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file itself is no iterable
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is torn or not a safetensors file: {error}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds nan or infinity, of which no result can come")
    return tensors, metadata


def load(path: str | Path, device: str | torch.device = "cpu") -> Network:
    """Load a trained model, in evaluation mode.

    Args:
        path: a run folder or its ``model.safetensors``.
        device: where to put it.

    Returns:
        The model; ``model.classes`` holds the names of the classes.

    Raises:
        CheckpointError: the file is missing, torn, or not a model of this package, or its weights are not finite.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    tensors, metadata = read_safetensors(path, f"a run folder or a {WEIGHTS}")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a model of this package (no format {FORMAT!r} in its metadata)")
    with fitting(path):
        model = build(json.loads(metadata["model"]))
        model.load_state_dict(tensors)
        model.classes = tuple(json.loads(metadata["classes"]))
    return model.eval().to(device)


@contextlib.contextmanager
def fitting(path: str | Path) -> Iterator[None]:
    """Raise CheckpointError where what a file holds does not fit what its metadata says that it is."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit the model it names: {_first_line(error)}") from None


def load_run(path: str | Path, device: str | torch.device = "cpu") -> tuple[Network, dict[str, Any]]:
    """Load the model and the configuration of a run folder.

    Returns:
        (model, config): config is the content of ``config.json``.

    Raises:
        CheckpointError: no run folder, or a damaged one.
    """
    return load(Path(path), device), load_config(path)


def load_config(run: str | Path) -> dict[str, Any]:
    """Read ``config.json`` of a run folder.

    Raises:
        CheckpointError: it is missing or no JSON object.
    """
    path = Path(run) / CONFIG
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{run} is no run folder: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict) or "model" not in config:
        raise CheckpointError(f"{path} is not the configuration of a run of this package")
    return config


def save_config(run: str | Path, config: dict[str, Any]) -> None:
    """Write ``config.json`` of a run folder."""
    write_atomically(Path(run) / CONFIG, (json_text(config, indent=2) + "\n").encode())


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
