"""The checkpoint of a training, written so that a kill loses only the work since the last one."""

import io
import pickle
import shlex
import zipfile
from pathlib import Path
from typing import Any

import torch

from cdn.errors import CheckpointError
from cdn.files import keep_as, write_atomically
from cdn.run_folder.names import PREVIOUS, STATE

FORMAT = "cdn-state-1"


def has_state(run: str | Path) -> bool:
    """Say whether a run has ever saved its state."""
    return any((Path(run) / name).exists() for name in (STATE, PREVIOUS))


def save_state(run: str | Path, state: dict[str, Any]) -> None:
    """Write ``state.pt``, keeping the one before as ``state.previous.pt``.

    Args:
        run: the run folder.
        state: a dict of tensors, numbers, strings and containers of these.

    Raises:
        CDNError: it cannot be written; the last state is intact.
    """
    run = Path(run)
    # Through memory, because a full disk under torch.save is a RuntimeError that hides its cause.
    buffer = io.BytesIO()
    torch.save(dict(state, format=FORMAT), buffer)
    if (run / STATE).exists():
        # Before it is replaced: at no moment is there less than one whole state.
        keep_as(run / STATE, run / PREVIOUS)
    write_atomically(run / STATE, buffer.getbuffer())


def load_state(run: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read ``state.pt`` of a run.

    The checksums of the archive are verified, and nothing but tensors and plain containers is unpickled.

    Raises:
        CheckpointError: there is none, it is torn or damaged, or it is not a state of this package.
    """
    path = Path(run) / STATE
    previous = Path(run) / PREVIOUS
    advice = f"; the one before is whole: {shlex.join(['mv', str(previous), str(path)])}" if _whole(previous) else ""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: there is nothing to resume{advice}")
    if not _whole(path):
        raise CheckpointError(f"{path} is torn or no checkpoint at all{advice}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        cause = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged, and was not loaded ({cause}){advice}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this package (no format {FORMAT!r}){advice}")
    return state


def _whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False
