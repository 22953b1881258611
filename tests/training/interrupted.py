"""Runs in a process of their own, which tests interrupt and resume."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from cdn.run_folder.names import STATE
from cdn.run_folder.state import load_state
from tests.in_process import run_module


def start(*arguments):
    """Start ``python -m cdn.train`` in a process of its own, of as many threads as this one, for the same sums."""
    return subprocess.Popen(
        [sys.executable, "-m", "cdn.train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def train(*arguments):
    return run_module("cdn.train", *arguments)


def rows(run, kind=None):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if kind in (None, row["kind"])]


def wait_for_step(run, step, process):
    """Wait until a checkpoint is on disk and the log has reached a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / STATE).exists() and (run / "metrics.jsonl").exists():
            steps = [r["step"] for r in rows_so_far(run)]
            if steps and max(steps) >= step:
                return
        time.sleep(0.02)
    pytest.fail(f"no step {step}: {process.communicate()}")


def rows_so_far(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def same_weights(a, b):
    a, b = load_state(a), load_state(b)
    assert a["step"] == b["step"]
    for part in ("model", "average"):
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), f"{part} {name}"
