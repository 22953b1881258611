"""What all tests share: threads, and where the real data lies."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("CDN_SHARED", Path(__file__).parents[1].parent / "shared"))


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
