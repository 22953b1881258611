"""Models on disk, as safetensors with what it takes to build them again."""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cdn.errors import CDNError, CheckpointError
from cdn.files import json_text, write_atomically
from cdn.model import Network, build
from cdn.model.capabilities import is_ours, unwrapped
from cdn.run_folder.config import read_config
from cdn.run_folder.forms import misfit
from cdn.run_folder.names import WEIGHTS
from cdn.run_folder.shipped import SHA256, locate, require_unchanged

FORMAT = "cdn-model-1"


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
    if not is_ours(inner):
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
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is torn or not a safetensors file: {error}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds nan or infinity, of which no result can come")
    return tensors, header.get("__metadata__", {})


def load(path: str | Path, device: str | torch.device = "cpu") -> Network:
    """Load a trained model, in evaluation mode.

    Args:
        path: a run folder or its ``model.safetensors``, or the name of a model that comes with the package, such as
            "digits"; a folder of that name comes first.
        device: where to put it.

    Returns:
        The model, in the precision of the file; ``model.classes`` holds the names of the classes, ``model.objective``
        what it was trained on. Of a model that was trained to classify alone, :func:`cdn.score` and the like are
        refused.

    Raises:
        CheckpointError: the file is missing, torn, or not a model of this package, or its weights are not finite.
    """
    path = locate(path)
    if path.is_dir():
        path = path / WEIGHTS
    require_unchanged(path)
    tensors, metadata = read_safetensors(
        path, f"a run folder or a {WEIGHTS}, or the name of a model, {', '.join(SHA256)}"
    )
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a model of this package (no format {FORMAT!r} in its metadata)")
    # Autograd takes no parameters that were made in inference mode: there would be no gradient and no score.
    with torch.inference_mode(False), fitting(path):
        model = build(json.loads(metadata["model"])).to(_precision(tensors.values()))
        model.load_state_dict(tensors)
        classes = json.loads(metadata["classes"])
        if wrong := misfit(classes, [str], "classes"):
            raise ValueError(wrong)
        model.classes = tuple(classes)
        model.objective = metadata.get("objective") or _objective_beside(path)
        return model.eval().to(device)


def _objective_beside(path: Path) -> str | None:
    """Return what the run of a model was trained on; files of old versions do not say so themselves."""
    try:
        return read_config(path.parent).objective
    except CheckpointError:
        return None


@contextlib.contextmanager
def fitting(path: str | Path) -> Iterator[None]:
    """Raise CheckpointError where the tensors of a file do not fit the model that its metadata names.

    What is built within can be differentiated later, in inference mode too.
    """
    try:
        with torch.inference_mode(False):
            yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit the model it names: {_first_line(error)}") from None


def _precision(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the dtype that holds all floating-point tensors, float32 or more, whatever torch's default is."""
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
