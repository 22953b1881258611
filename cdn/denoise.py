"""Run ``python -m cdn.denoise``: the command is :mod:`cdn.commands.denoise`, and ``cdn.denoise`` stays a function."""

import sys

import cdn
from cdn.cli.process import run_command
from cdn.commands.denoise import main

if __name__ == "__main__":
    run_command(main)
else:  # imported: Python gives the name in the package to what it finds here, and finds the file by its specification
    cdn.denoise.__spec__ = __spec__  # type: ignore[attr-defined]
    sys.modules[__name__] = cdn.denoise  # type: ignore[assignment]
