"""Whether the GPU of this process is pretended, and how to run tests on one that is."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGIN = "tests.pretend_gpu.plugin"
PRETENDED = PLUGIN in sys.modules


def command(file):
    """Return what runs a file on the pretended GPU; it is ``python -m`` that lets pytest find the plugin here."""
    return f"python -m pytest -m imitated -p {PLUGIN} {Path(file).relative_to(ROOT)}"
