"""Where the real data lies, if it does."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return $CDN_SHARED/data, or shared/data beside the repository; skip the test where neither exists."""
    default = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("CDN_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; point CDN_SHARED at the folder that holds data/")
    return folder
