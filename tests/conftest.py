"""What all tests share: threads, random numbers, trained runs, and where the real data lies."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.runs import TINY, TINY_JEM, SharedRuns
from tests.untrained import make_model, make_run, make_split  # noqa: F401  # fixtures

SHARED = Path(os.environ.get("CDN_SHARED", Path(__file__).parents[1].parent / "shared"))
WORKER = "PYTEST_XDIST_WORKER" in os.environ

if WORKER:
    # There is a worker for every core: more threads, here or in processes that tests start, would wait for each other.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets; tests that need it skip where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set CDN_SHARED)")
    return folder


@pytest.fixture(scope="session")
def train_once(tmp_path_factory):
    """A function from a name and options of training to a run folder, which no test may change."""
    folder = tmp_path_factory.getbasetemp()
    runs = SharedRuns((folder.parent if WORKER else folder) / "runs")
    yield runs
    runs.check()


@pytest.fixture
def copy_run(tmp_path):
    """A function that copies a run folder, so that a test may change it."""
    return lambda run: Path(shutil.copytree(run, tmp_path / "copies" / run.name))


@pytest.fixture(scope="session")
def digits_run(train_once):
    """A joint model that classifies and denoises digits well enough to be measured."""
    return train_once("digits", "--width 16 --steps 300")


@pytest.fixture(scope="session")
def plain_run(train_once):
    """A residual network that never saw noise and classifies digits well."""
    return train_once("plain", "--model resnet-small --width 8 --steps 200 --clean-share 1")


@pytest.fixture(scope="session")
def denoiser_run(train_once):
    """A direct denoiser that is no longer the identity."""
    return train_once("denoiser", "--model denoiser-small --width 8 --steps 60")


@pytest.fixture(scope="session")
def classification_run(train_once):
    """A joint model that was trained to classify only, for a moment."""
    return train_once("classification", "--objective classification --width 8 --steps 2")


@pytest.fixture(scope="session")
def joint_run(train_once):
    """A joint model after a few steps."""
    return train_once("joint", TINY)


@pytest.fixture(scope="session")
def jem_run(train_once):
    """A joint energy model after a few steps."""
    return train_once("jem", TINY_JEM)


@pytest.fixture
def blank_pictures(monkeypatch):
    """Figures are composed, but not drawn, which takes longer than most of what tests look at."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: None)
