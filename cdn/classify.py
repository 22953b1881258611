"""Run ``python -m cdn.classify``: the command is :mod:`cdn.commands.classify`."""

from cdn.cli.process import run_command
from cdn.commands.classify import main

if __name__ == "__main__":
    run_command(main, to_the_end=False)
