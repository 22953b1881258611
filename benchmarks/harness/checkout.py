"""Commands that run with this checkout, which need not be installed."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**variables):
    """Return the environment of a command that imports this checkout first, then what this process can import.

    Args:
        variables: to set beside that.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **variables}
