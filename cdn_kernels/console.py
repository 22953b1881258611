"""Standard output and error of commands, where a reader may have gone and a terminal may lack letters."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

# The reader of a pipe has gone, or the terminal was closed: nobody is left to be told.
GONE = (errno.EPIPE, errno.EIO)


def run_steadily(main: Callable[[], int | None], *, to_the_end: bool = True) -> int:
    """Run a command whatever becomes of its output, and return its exit status.

    Letters that the encoding of the output lacks are written as escapes. Output that cannot be written makes the status
    1 and is told in a line on stderr; that its reader has gone is no failure.

    Args:
        main: the command; it may raise SystemExit.
        to_the_end: whether to go on without output; if not, the command ends there, with status 1, as it has no other
            result.
    """
    before = sys.stdout, sys.stderr
    out = _Steady(before[0], to_the_end)
    sys.stdout, sys.stderr = out, _Steady(before[1], True)
    status = 0
    try:
        status = _status(main)
        out.flush()
    except _EndOfOutput:
        pass
    finally:
        sys.stdout, sys.stderr = before
    if status or out.error is None or (to_the_end and out.error.errno in GONE):
        return status
    if out.error.errno not in GONE:
        print(f"error: the output could not be written: {out.error.strerror}", file=sys.stderr)
    return 1


def _status(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            raise
        return int(stop.code or 0)


class _EndOfOutput(BaseException):
    pass


class _Steady:
    """A stream that drops what cannot be written."""

    def __init__(self, stream: TextIO, to_the_end: bool) -> None:
        self.stream, self.to_the_end = stream, to_the_end
        self.error: OSError | None = None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._do(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(self.stream.flush)

    def _do(self, action: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            action()
        except OSError as error:
            self.error = error
            # What is still in the buffer would be tried again when the interpreter ends.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)
            if not self.to_the_end:
                raise _EndOfOutput from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
