"""Run ``python -m cdn.evaluate``: the command is :mod:`cdn.commands.evaluate`."""

from cdn.cli.process import run_command
from cdn.commands.evaluate import main

if __name__ == "__main__":
    run_command(main, divided=True)
