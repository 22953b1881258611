"""The benchmark of the passes runs, measures nothing that is wrong, and records what it measured."""
import json

import pytest
import torch

from benchmarks import passes
from cdn_kernels.backends import cpu, interface

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_small_passes_are_measured_and_recorded(tmp_path, capsys):
    path = tmp_path / "result.json"
    passes.main(["--channels", "16", "--size", "8", "--megabytes", "0.01", "--rounds", "3", "--threads", "1", "--json",
                 str(path)])
    result, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert len(result["passes"]) == 16 * len(passes.DTYPES) * len(passes.LAYOUTS)
    for row in result["passes"]:
        median, low, high = row["fraction_of_copy"]
        assert 0 < low <= median <= high and row["name"] in printed
    assert result["options"]["channels"] == "16" and result["torch"] in printed


def test_a_wrong_pass_is_not_measured(monkeypatch):
    right = cpu.gelu

    def wrong(sweep, u, grad, other, out, tangent_out):
        right(sweep, u, grad, other, out, tangent_out)
        if sweep == interface.BACKWARD:
            out.flatten()[0] += 1

    monkeypatch.setattr(cpu, "gelu", wrong)
    with pytest.raises(SystemExit, match="no measurement: gelu backward"):
        passes.main(["--channels", "16", "--size", "8", "--megabytes", "0.01", "--layout", "contiguous"])
