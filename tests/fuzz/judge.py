"""Run a case in a process of its own, and judge what it did."""

import json
import math
import os
import re
import resource
import signal
import sys
import time
import traceback
import zipfile
from pathlib import Path
from random import Random
from typing import NamedTuple

import safetensors
import torch
from PIL import Image

from cdn.cli.process import run_command
from cdn.run_folder.names import LOCK
from tests.command_rows import make_place
from tests.faults import contents
from tests.fuzz.cases import KINDS

PATIENCE = 10
MEMORY = 4 << 30  # bytes that a case may take beyond what the process has
WELL, REFUSED, TRACEBACK, HANG, HALF = "well", "refused", "traceback", "hang", "half-written"
FAULTS = (TRACEBACK, HANG, HALF)


class Verdict(NamedTuple):
    """What came of a case: its number and kind, what was done, one of the words above, and what shows it."""

    number: int
    kind: str
    what: str
    outcome: str
    shown: str


def judge(kind, seed, number, folder, seconds):
    """Run the case of a number and return its Verdict.

    Args:
        kind: one of KINDS.
        seed, number: what decides the case.
        folder: an empty folder, for it alone.
        seconds: of a processor after which it hangs; or ten times as many by the clock, as other work may slow it down.
    """
    at = make_place(folder / "place")
    what, call = KINDS[kind](Random(f"{seed} {number} {kind}"), at)
    here = at.root / "here"
    here.mkdir()
    before = contents(at.root)
    torn = {path for path, data in before.items() if data is not None and not _whole(at.root / path)}
    said = folder / "said"
    status = _run(call, here, said, seconds)
    text = said.read_text(errors="replace")
    verdict = lambda outcome, shown="": Verdict(number, kind, what, outcome, shown)
    if status in (None, -signal.SIGXCPU):
        return verdict(HANG, f"more than {seconds:g} s: {text[-300:]}")
    # But for progress bars, and what libtiff writes past Python.
    errors = [line for line in text.splitlines() if line and "%|" not in line and not line.startswith("tempfile.tif")]
    told = (
        status == 0
        or (status == 2 and "usage:" in text)
        or (
            status == 1
            and errors
            and errors[-1].startswith("error: ")
            and all(re.match("error: |note: ", e) for e in errors)
            and sum(e.startswith("error: ") for e in errors) == 1
        )
    )
    if not told or "Traceback" in text:
        return verdict(TRACEBACK, f"status {status}: {text[-3000:]}")
    left = _left(at.root, before, torn, failed=status != 0)
    if left:
        return verdict(HALF, f"status {status}, {left}: {text[-300:]}")
    return verdict(REFUSED if status else WELL, text[-200:])


def _run(call, here, said, seconds):
    """Call in a child, and return its exit status: negative for a signal, None where it did not end in time."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            os.setsid()  # with what it starts
            out = os.open(said, os.O_WRONLY | os.O_CREAT)
            null = os.open(os.devnull, os.O_RDWR)
            for target, source in ((0, null), (1, null), (2, out)):
                os.dup2(source, target)
            sys.stdout, sys.stderr = (open(target, "w", closefd=False) for target in (1, 2))  # noqa: SIM115
            os.chdir(here)
            Image.MAX_IMAGE_PIXELS = 1 << 18  # or a damaged size that still decodes would be minutes of honest work
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            # By a signal of its own at the first of the two, and killed at the second.
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
            status = 3
            try:
                run_command(call)
            except SystemExit as stop:
                status = stop.code or 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status if isinstance(status, int) else 3)
    end = time.monotonic() + PATIENCE * seconds
    while time.monotonic() < end:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _left(root, before, torn, failed):
    """Return what a case left that it should not have, in words: temporary files, and files that are torn."""
    now = contents(root)
    changed = [path for path, data in now.items() if path.name != LOCK and before.get(path, b"") != data]
    for path in changed:
        if path.name.endswith(".tmp") or path.name.startswith(".cifar-10-"):
            return f"{path} is left over"
        if now[path] is not None and path not in torn and not _whole(root / path):
            return f"{path} is half written"
    if failed:
        # What training and experiments finished before they failed stays; a single result is there or not.
        single = [
            path
            for path in changed
            if path.suffix in (".png", ".jpg", ".webp", ".bmp", ".tif", ".ppm", ".pgm") and path.stem == "out"
        ]
        gone = [path for path in before if path not in now and before[path] is not None]
        if single or gone:
            return f"{(single + gone)[0]} was written or removed by a failure"
    return ""


def _whole(path):
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors":
            with safetensors.safe_open(str(path), "pt"):
                pass
        elif path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        elif path.suffix in (".png", ".jpg", ".webp"):
            with Image.open(path) as image:
                image.load()
    except Exception:
        return False
    return True


def prepare():
    """See that children inherit one thread, and what takes seconds to import."""
    torch.set_num_threads(1)
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
