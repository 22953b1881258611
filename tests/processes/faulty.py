"""An evaluation that goes wrong on one of its processes: FAULT RANK and the arguments of ``python -m cdn.evaluate``."""

import os
import signal
import sys

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


if __name__ == "__main__":
    name, ranks, *arguments = sys.argv[1:]
    if str(started().rank) in ranks:
        ImageSplit.images = {f.__name__: f for f in (unreadable, fault, killed)}[name]
    run_command(lambda: main(arguments), divided=True)
