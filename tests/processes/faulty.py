"""An evaluation that goes wrong on one of its processes: FAULT RANK and the arguments of ``python -m cdn.evaluate``."""

import contextlib
import os
import signal
import sys
from unittest import mock

from cdn.cli.process import run_command
from cdn.commands.evaluate import main
from cdn.data.split import ImageSplit
from cdn.errors import DataError
from cdn.processes import started

UNREADABLE = "photo.png cannot be decoded"


def unreadable(*args):
    """Fail as a split does."""
    raise DataError(UNREADABLE)


def fault(*args):
    """Fail as code that is wrong does."""
    raise ZeroDivisionError("a fault of the code")


def killed(*args):
    """End without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def going_wrong(name=None, *ranks):
    """Let reading images go wrong on some of the processes, by the name of a function here; or nothing."""
    if started().rank in ranks:
        with mock.patch.object(ImageSplit, "images", globals()[name]):
            yield
    else:
        yield


if __name__ == "__main__":
    name, ranks, *arguments = sys.argv[1:]
    with going_wrong(name, *map(int, ranks)):
        run_command(lambda: main(arguments), divided=True)
