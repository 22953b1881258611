"""Files of JSON rows, one a line, that outlive their process: metrics of a training, and results."""

import json
import os
from pathlib import Path
from typing import Any

from cdn.errors import CDNError, CheckpointError
from cdn.files import append, json_text

Row = dict[str, Any]


class Journal:
    """A file of JSON objects, one a line, that grows row by row; an interrupted command finds what it had written.

    Args:
        path: the file; made by the first row. Half a line at its end, which a crash leaves, is dropped.
        size: None to go on after all that is there, or the size in bytes to go on from; 0 to start anew. What is
            beyond it is dropped, as rows that were written after the checkpoint that a run resumes from.

    Attributes:
        rows: all rows so far, as dicts; numbers that are not finite are null in the file.

    Raises:
        CheckpointError: the file is shorter than the size, or has no end of a row there.
        CDNError: it cannot be read or written, or holds something else.
    """

    def __init__(self, path: str | Path, size: int | None = None) -> None:
        self.path = Path(path)
        try:
            found = self.path.stat().st_size if self.path.exists() else 0
            if size is not None and found < size:
                raise CheckpointError(f"{path} has {found} bytes where the checkpoint saw {size}: it was changed since")
            data = _whole_lines(self.path.read_bytes()) if found and size != 0 else b""
            if size and data[size - 1 : size] != b"\n":
                raise CheckpointError(
                    f"{path} has no end of a row at byte {size}, as the checkpoint saw: it was changed since"
                )
            self.size = len(data) if size is None else size
            if self.size < found:
                os.truncate(self.path, self.size)
            self.rows = _parse(self.path, data[: self.size], "; move the file away to start anew")
        except OSError as error:
            raise CDNError(f"{path}: cannot be read: {error.strerror}") from None

    def append(self, row: Row) -> None:
        """Add a row and hand it to the operating system.

        Raises:
            CDNError: it cannot be written; the rows before it are intact.
        """
        self.size = append(self.path, (json_text(row) + "\n").encode())
        self.rows.append(row)

    def sync(self) -> int:
        """Wait until the rows are on disk and return the size of the file."""
        try:
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise CDNError(f"could not write {self.path}: {error.strerror}") from None
        return self.size


def read_rows(path: str | Path) -> list[Row]:
    """Return the rows of a file that another process may be writing: half a line at its end is left out.

    Raises:
        CDNError: it cannot be read, or holds something else.
    """
    try:
        return _parse(Path(path), _whole_lines(Path(path).read_bytes()))
    except OSError as error:
        raise CDNError(f"{path}: expected rows of JSON, cannot be read ({error.strerror})") from None


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _parse(path: Path, data: bytes, advice: str = "") -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise CDNError(f"{path}: line {number} is no row of results, a JSON object{advice}")
        rows.append(row)
    return rows
