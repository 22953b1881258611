"""Rows of results that outlive the process that made them."""

import json
import os
from pathlib import Path
from typing import Any

from cdn.errors import CDNError
from cdn.model.finite import json_text
from cdn.run_folder.weights import append

Row = dict[str, Any]


class Journal:
    """A file of JSON objects, one a line, that grows row by row; an interrupted command finds what it had written.

    Args:
        path: the file; made by the first row. Half a line at its end, which a crash leaves, is dropped.

    Attributes:
        rows: all rows so far, as dicts.

    Raises:
        CDNError: the file cannot be read, or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[Row] = []
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(self.path, len(whole))
            for line in whole.splitlines():
                self.rows.append(_row(line))
        except OSError as error:
            raise CDNError(f"{self.path}: cannot be read: {error.strerror}") from None
        except ValueError:
            raise CDNError(
                f"{self.path}: line {len(self.rows) + 1} is no row of results; move the file away to start anew"
            ) from None

    def append(self, row: Row) -> None:
        """Add a row and hand it to the operating system.

        Raises:
            CDNError: it cannot be written; the rows before it are intact.
        """
        append(self.path, (json_text(row) + "\n").encode())
        self.rows.append(row)


def _row(line: bytes) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError
    return row
