"""One small run on the digits, trained once and shared by the tests of all experiments."""

import pytest
import torch

from cdn import train


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A run folder: a joint model of the digits that classifies and denoises well enough to be measured."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    torch.manual_seed(0)
    train.main(["--out", str(run), "--width", "16", "--steps", "300", "--evaluations", "1", "--device", "cpu"])
    return run
