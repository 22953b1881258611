"""Run ``python -m cdn.train``: the command is :mod:`cdn.commands.train`."""

from cdn.cli.process import run_command
from cdn.commands.train import main

if __name__ == "__main__":
    run_command(main, divided=True)
