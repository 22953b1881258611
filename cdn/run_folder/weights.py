"""What a run leaves on disk, and how it is written so that a crash cannot tear it."""

import contextlib
import functools
import glob
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cdn.errors import CDNError, CheckpointError
from cdn.model import Network, build
from cdn.model.capabilities import unwrapped
from cdn.model.finite import json_text

CONFIG, WEIGHTS, METRICS = "config.json", "model.safetensors", "metrics.jsonl"
FORMAT = "cdn-model-1"

# How names of files that are being written end, and for how many seconds a writer may fall silent.
TEMPORARY, STALE = ".tmp", 3600.0


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Replace a file by bytes so that a reader, or a crash at any moment, finds the old content or the new.

    What a writer of the same file left that was killed long ago goes with it.

    Raises:
        CDNError: the disk is full or the folder cannot be written; the old content is intact.
    """
    path = Path(path)
    with _replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sweep(path.parent, path.name)


def keep_as(path: str | Path, other: str | Path) -> None:
    """Give a file a second name, which it keeps when its own is replaced: a link, or a copy where there are no links.

    Raises:
        CDNError: it cannot be written; both names stand for what they stood for.
    """
    with _replacing(Path(other)) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def append(path: str | Path, data: bytes) -> int:
    """Add bytes to the end of a file, all of them or none, and return its size.

    Raises:
        CDNError: the disk is full or the file cannot be written; what was there before is intact.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(size)
                raise
            return size + len(data)
    except OSError as error:
        raise CDNError(f"could not write {path}: {error.strerror}; what was there before is intact") from None


def make_folder(path: Path) -> None:
    """Make the folder that a command writes into, and see that files can be written there.

    Raises:
        CDNError: it cannot be made, or not be written into.
    """
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CDNError(f"--out: {path} cannot be made a folder: {error.strerror}") from None
    try:
        _try_writing(path, path)
    except CDNError:
        if new:
            path.rmdir()
        raise


def require_writable(path: Path) -> None:
    """Raise CDNError, before any work is done, where a file cannot be written."""
    if path.is_dir():
        raise CDNError(f"{path}: expected a file to write, got a folder")
    if not path.absolute().parent.is_dir():
        raise CDNError(f"{path}: its folder does not exist")
    _try_writing(path.parent, path)


def sweep(folder: Path, *names: str, age: float = STALE) -> None:
    """Remove what killed writers left of the files of a folder.

    Args:
        folder: the folder.
        names: of the files that they were to become.
        age: seconds since the last byte; 0 where it is known that nobody else writes.
    """
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.*{TEMPORARY}"):
            with contextlib.suppress(OSError):
                if not age or time.time() - path.stat().st_mtime >= age:
                    path.unlink()


def _try_writing(folder: Path, named: Path) -> None:
    """Raise CDNError, which names a path, where files of a block cannot be written into a folder."""
    probe = folder / f".probe.{os.getpid()}{TEMPORARY}"
    try:
        probe.write_bytes(bytes(4096))
    except OSError as error:
        raise CDNError(f"{named} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield where to write what is to take the place of a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise CDNError(f"could not write {path}: {error.strerror}; what was there before is intact") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    # The new name itself has to survive a power cut, where the system can promise that of a folder: not all can.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_model(path: str | Path, model: nn.Module, classes: Sequence[str] = (), objective: str | None = None) -> None:
    """Write the weights of a model as safetensors, with what it takes to build it again.

    Args:
        path: the file.
        model: a model of :mod:`cdn.model`, or one that is wrapped, of which the module inside is written.
        classes: names of the classes.
        objective: what it was trained on, as in the settings of a run, by which it is refused for all else; None for
            all that its kind can do.

    Raises:
        CDNError: another module, or the file cannot be written.
    """
    inner = unwrapped(model)
    if not isinstance(inner, Network):
        raise CDNError(f"save_model: expected a model of cdn, got a {type(inner).__name__}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in inner.state_dict().items()}
    metadata = dict(format=FORMAT, model=json_text(inner.config), classes=json_text(list(classes)))
    if objective is not None:
        metadata["objective"] = objective
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def read_safetensors(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, by name, and its metadata.

    Args:
        path: the file, a ``Path``.
        expected: what to say was expected if there is none.

    Raises:
        CheckpointError: the file is missing, cannot be read, is torn, or holds a tensor that is not finite.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: expected {expected}")
    try:
        data = path.read_bytes()  # safetensors opens no path that is not UTF-8
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is torn or not a safetensors file: {error}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds nan or infinity, of which no result can come")
    return tensors, header.get("__metadata__", {})


def load(path: str | Path, device: str | torch.device = "cpu") -> Network:
    """Load a trained model, in evaluation mode.

    Args:
        path: a run folder or its ``model.safetensors``.
        device: where to put it.

    Returns:
        The model, in the precision of the file; ``model.classes`` holds the names of the classes, ``model.objective``
        what it was trained on. Of a model that was trained to classify alone, :func:`cdn.score` and the like are
        refused.

    Raises:
        CheckpointError: the file is missing, torn, or not a model of this package, or its weights are not finite.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    tensors, metadata = read_safetensors(path, f"a run folder or a {WEIGHTS}")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a model of this package (no format {FORMAT!r} in its metadata)")
    # Parameters that are made in inference mode could never be differentiated by, nor the score be computed outside.
    with torch.inference_mode(False), fitting(path):
        model = build(json.loads(metadata["model"])).to(_precision(tensors.values()))
        model.load_state_dict(tensors)
        model.classes = tuple(json.loads(metadata["classes"]))
        model.objective = metadata.get("objective") or _objective_beside(path)
        return model.eval().to(device)


def _objective_beside(path: Path) -> str | None:
    """Return what the run of a model was trained on; files of old versions do not say so themselves."""
    try:
        return load_config(path.parent).get("training", {}).get("objective")
    except CheckpointError:
        return None


@contextlib.contextmanager
def fitting(path: str | Path) -> Iterator[None]:
    """Raise CheckpointError where what a file holds does not fit what its metadata says that it is.

    What is built within can be differentiated later, in inference mode too.
    """
    try:
        with torch.inference_mode(False):
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


def image_side(config: dict[str, Any]) -> int | None:
    """Return the side of the training images of a run, as its ``config.json`` says; None if nothing tells it."""
    data = config.get("data", {})
    # Only image folders have a size to choose; the shape (C, H, W) tells that of every dataset.
    return data.get("shape", [data.get("image_size")])[-1]


def save_config(run: str | Path, config: dict[str, Any]) -> None:
    """Write ``config.json`` of a run folder."""
    write_atomically(Path(run) / CONFIG, (json_text(config, indent=2) + "\n").encode())


def _precision(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the dtype that holds all floating-point tensors, float32 or more, whatever torch's default is."""
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
