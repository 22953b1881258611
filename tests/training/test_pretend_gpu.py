"""What runs on GPUs only, on a GPU that is not there: no step mixes devices, and every command finds its way.

What the plugin of tests/pretend_gpu lets run beside this: training steps (test_on_gpu.py) and every pass that is timed
(benchmarks/test_passes.py).
"""

import contextlib
import io

import pytest
import torch

from cdn.commands import evaluate, train
from cdn.experiments import jacobian
from cdn_kernels import info
from tests.pretend_gpu.marks import PRETENDED, command

pytestmark = pytest.mark.skipif(not PRETENDED, reason=command(__file__))
TINY = ["--steps", "12", "--width", "8", "--batch-size", "32", "--evaluations", "2"]


def test_what_is_on_the_device_computes():
    x = torch.arange(6.0, device="cuda").view(2, 3)
    assert x.is_cuda and (x.t() @ x).is_cuda and float(x.sum()) == 15 and x.cpu().tolist()[1] == [3, 4, 5]


def test_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="same device"):
        torch.arange(6.0, device="cuda").view(2, 3) + torch.ones(3)


WAITING = {
    "a number": lambda x: x.sum().item(),
    "a copy to the host": lambda x: x.cpu(),
    "a copy from the host": lambda x: torch.ones(3).to(x.device),
    "a mask": lambda x: x[x > 2],
    "indices": lambda x: x.nonzero(),
}


@pytest.fixture
def forbidden():
    """No operation may wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_seen(name, forbidden):
    x = torch.empty(6, device="cuda").fill_(3.0)
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        WAITING[name](x)
    torch.cuda.set_sync_debug_mode("default")
    WAITING[name](x)


def test_what_does_not_wait_is_not_forbidden(forbidden):
    x = torch.empty(6, device="cuda").fill_(3.0)
    x.copy_(torch.arange(6.0), non_blocking=True)
    assert x.where(x > 2, 0.0)[x.argsort()].cumsum(0).is_cuda


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the folder of a run trained on the device, what was printed)."""
    folder = str(tmp_path_factory.mktemp("trained") / "run")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train.main(["--out", folder, "--fused", "--precision", "bf16", "--device", "cuda", *TINY])
    return folder, printed.getvalue()


def test_information_names_the_device(capsys):
    info.main()
    assert "on a GPU that is not there" in capsys.readouterr().out


def test_training_is_recorded_on_the_device(trained):
    _, printed = trained
    assert "steps of 32 on cuda" in printed and "without a CUDA graph" not in printed


def test_a_run_is_evaluated_on_the_device(trained, capsys):
    folder, _ = trained
    evaluate.main([folder])
    assert "denoising loss" in capsys.readouterr().out


def test_the_jacobian_is_found_on_the_device(trained, capsys):
    folder, _ = trained
    jacobian.main([folder])
    assert "eigenvectors" in capsys.readouterr().out
