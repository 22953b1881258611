"""A small sample of the malformed inputs, and that what judges them sees faults."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cdn
from cdn.errors import CDNError
from tests.fuzz import judge
from tests.fuzz.mutations import WORDS

ROOT = Path(cdn.__file__).parents[1]


def test_a_sample_has_no_faults():
    words = [sys.executable, "-m", "tests.fuzz", "--cases", "20", "--seed", "1", "--processes", "2"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split()[:2] == ["all", "20"]


def test_the_record_is_of_a_whole_run_without_faults():
    record = json.loads((ROOT / "docs" / "records" / "fuzz.json").read_text())
    assert record["kinds"].keys() == judge.KINDS.keys()
    assert sum(sum(counts.values()) for counts in record["kinds"].values()) >= 1000
    assert not any(counts[fault] for counts in record["kinds"].values() for fault in judge.FAULTS)
    assert record["command"].startswith("python -m tests.fuzz") and record["machine"]["commit"]


def leave(name):
    Path(name).write_text("{")
    raise CDNError("a sentence")


def fail(kind):
    raise kind("a sentence")


CALLS = {
    judge.WELL: lambda: None,
    judge.REFUSED: lambda: fail(CDNError),
    "traceback": lambda: fail(ValueError),
    "traceback, killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "traceback, more lines": lambda: print("more", file=sys.stderr) or fail(CDNError),
    "hang": lambda: time.sleep(99),
    "half-written": lambda: leave("results.json"),
    "half-written, temporary": lambda: leave(".x.1.tmp"),
}


@pytest.mark.parametrize("expected", CALLS)
def test_faults_are_seen(tmp_path, monkeypatch, expected):
    monkeypatch.setitem(judge.KINDS, "call", lambda random, at: ("", CALLS[expected]))
    seconds = 0.2 if expected == "hang" else 60
    assert judge.judge("call", 0, 0, tmp_path, seconds).outcome == expected.partition(",")[0]


def test_no_argument_names_a_place_outside():
    """A command that runs as root could write there."""
    assert not [word for word in WORDS if word.startswith("/") and word != "/dev/null/x"]
