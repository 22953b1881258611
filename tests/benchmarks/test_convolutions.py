"""The benchmark of our own convolutions runs, compares equal things only, and records what it measured."""
import json

import pytest

from benchmarks import convolution
from cdn_kernels.backends import cpu

pytestmark = pytest.mark.skipif(cpu.ENGINE is None, reason="this processor has neither AVX-512 BF16 nor AMX")


def test_a_small_run_is_measured_and_recorded(tmp_path, capsys):
    convolution.main(["--width", "16", "--batch", "2", "--size", "8", "--rounds", "2", "--threads", "1",
                      "--json", str(tmp_path / "result.json")])
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["rows"]) == 3 * len(convolution.layers(16, 8)) and result["engine"] == cpu.ENGINE
    for row in result["rows"]:
        median, low, high = row["ratio"]
        assert 0 < low <= median <= high and row["flops"] > 0
    assert f"{result['total']['torch'] / result['total']['own']:.2f} times" in capsys.readouterr().out


def test_results_that_differ_are_not_compared(monkeypatch):
    kernel = cpu.conv2d
    monkeypatch.setattr(cpu, "conv2d", lambda kind, a, b, out, *rest: (kernel(kind, a, b, out, *rest), out.mul_(1.1)))
    with pytest.raises(SystemExit, match="results differ, forward"):
        convolution.main(["--width", "16", "--batch", "2", "--size", "8", "--rounds", "1", "--threads", "1"])
