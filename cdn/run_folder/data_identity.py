"""The fingerprint of the data in a run folder, by which a resumed run refuses other data."""

from pathlib import Path
from typing import Any

from cdn.data import Fingerprint, differences
from cdn.errors import CheckpointError, DataError
from cdn.files import json_text, write_atomically
from cdn.run_folder.config import read_config, write_config
from cdn.run_folder.forms import misfit, read_json
from cdn.run_folder.names import DATA

SPLITS = ("train", "test")
_SPLIT = dict(images=int, labels=str, holds={})
_FORM = dict(classes=[str], shape=[int], train=_SPLIT, test=_SPLIT)


def write_fingerprint(run: Path, found: Fingerprint) -> None:
    """Note in a run folder which data the run is trained on."""
    write_atomically(run / DATA, (json_text(found) + "\n").encode())


def require_same_data(run: Path, found: Fingerprint) -> None:
    """See that a run goes on with the data of its start.

    What is left of it, its order of images and its schedule, belongs to these images. A run of a version that noted no
    fingerprint is asked for what its configuration says.

    Args:
        run: the run folder.
        found: the fingerprint of the data at hand.

    Raises:
        DataError: it is other data.
        CheckpointError: a damaged run.
    """
    before = _read_fingerprint(run) if (run / DATA).exists() else read_config(run).fingerprint()
    if changes := differences(before, found):
        raise DataError(
            f"{run}: the data is not that of its start: {'; '.join(changes)}. "
            "Name the folder of the same data with --data-dir, or start a new run"
        )


def note_data(run: Path, data_dir: str | None, found: Fingerprint) -> None:
    """Note in the folder of a run that goes on where its data is now and, if nobody did, which it is."""
    if not (run / DATA).exists():
        write_fingerprint(run, found)
    config = read_config(run)
    if config.training.get("data_dir") != data_dir:
        write_config(run, config.with_data_dir(data_dir))


def _read_fingerprint(run: Path) -> dict[str, Any]:
    try:
        found = read_json(run / DATA)
    except OSError as error:
        raise CheckpointError(f"{run / DATA} cannot be read: {error.strerror}") from None
    wrong = misfit(found, _FORM)
    for split in () if wrong else SPLITS:
        for name, held in found.get(split, {}).get("holds", {}).items():  # how many images, and what tells their files
            if not isinstance(held, list) or not held:
                wrong = f"{split}.holds.{name} is no list"
    if wrong:
        raise CheckpointError(f"{run / DATA} is damaged: {wrong}")
    return found
