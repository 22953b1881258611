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
    """Write the fingerprint of the training data into a run folder."""
    write_atomically(run / DATA, (json_text(found) + "\n").encode())


def require_same_data(run: Path, found: Fingerprint) -> None:
    """Raise DataError unless the data at hand is that of the start of a run.

    The rest of a run, its order of images and its schedule, is made for the images of its start. Old versions wrote no
    fingerprint: the data of their runs is compared with what the configuration says of it.

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
    """Write into the folder of a resumed run where its data is now, and the fingerprint of the data if it has none."""
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
