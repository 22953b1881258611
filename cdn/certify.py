"""Run ``python -m cdn.certify``: the command is :mod:`cdn.commands.certify`, and ``cdn.certify`` stays a function."""

import sys

import cdn
from cdn.cli.process import run_command
from cdn.commands.certify import main

if __name__ == "__main__":
    run_command(main, divided=True)
else:  # imported: Python gives the name in the package to what it finds here, and finds the file by its specification
    cdn.certify.__spec__ = __spec__  # type: ignore[attr-defined]
    sys.modules[__name__] = cdn.certify  # type: ignore[assignment]
