"""The benchmark of the joint step runs, compares equal things only, and records what it measured."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cdn_kernels.backends import cpu

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
def test_a_small_step_is_measured_and_recorded(tmp_path):
    command = [sys.executable, "-m", "benchmarks.joint_step", "--width", "8", "--batch", "2", "--size", "8", "--rounds",
               "2", "--threads", "1", "--json", str(tmp_path / "result.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert {len(seconds) for seconds in result["seconds"].values()} == {2}
    for name, (median, low, high) in result["ratios"].items():
        assert 0 < low <= median <= high and name in done.stdout
    assert result["options"]["width"] == "8" and result["torch"] in done.stdout
