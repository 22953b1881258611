"""The benchmark of torch's convolutions runs, and compares equal things only."""
from benchmarks import torch_convolutions


def test_a_small_step_is_measured(capsys):
    torch_convolutions.main(["--channels", "4", "--batch", "2", "--size", "8", "--rounds", "2", "--threads", "1"])
    assert "double backward / first derivatives" in capsys.readouterr().out
