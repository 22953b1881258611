"""Commands on several processes, as torchrun starts them, and beside them on one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Bounded, whatever hangs; on a busy machine the start alone may take half a minute.
SECONDS = 240


def torchrun(count, module, *arguments):
    """Run ``torchrun --nproc-per-node count -m -- module arguments``; return what subprocess.run does."""
    # Without the two dashes torchrun takes options such as --n for abbreviations of its own.
    launch = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "--"]
        if count > 1
        else ["-m"]
    )
    return subprocess.run(
        [sys.executable, *launch, module, *map(str, arguments)],
        env=os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
