"""Who runs an operation: the choice of a caller, of a block of code, and of the machine."""

import pytest
import torch

import cdn_kernels
from cdn_kernels.backends import cpu
from cdn_kernels.backends.dispatch import resolve

CPU = torch.device("cpu")


def test_a_block_chooses_for_calls_that_leave_it_open():
    choice = lambda impl="auto": resolve("gelu", impl, CPU, torch.float32)
    outside = choice()
    with cdn_kernels.using("reference"):
        assert choice() == "reference"
        with cdn_kernels.using("auto"):
            assert choice() == outside
        assert choice() == "reference"
        if not cpu.MISSING:
            assert choice("cpu") == "cpu"
    assert choice() == outside


def test_a_block_ends_with_an_error_too():
    with pytest.raises(KeyError), cdn_kernels.using("reference"):
        raise KeyError
    assert resolve("gelu", "auto", CPU, torch.float32) == ("reference" if cpu.MISSING else "cpu")


def test_unknown_choices_are_named():
    with pytest.raises(ValueError, match="impl must be one of auto, reference, cpu, triton, cuda, got 'gpu'"):
        with cdn_kernels.using("gpu"):
            pass


@pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
def test_a_named_backend_is_never_replaced():
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run: .* got device meta"):
        cdn_kernels.gelu(torch.ones(2, device="meta"), impl="cpu")
    with pytest.raises(RuntimeError, match="cannot run: .* got device meta"), cdn_kernels.using("cpu"):
        cdn_kernels.gelu(torch.ones(2, device="meta"))
    assert cdn_kernels.gelu(torch.ones(2, device="meta")).shape == (2,)
