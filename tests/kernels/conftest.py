"""Where tests of the CUDA kernels run: on a GPU where there is one, imitated on the processor, or not, but compiled."""

import sys

import pytest
import torch

from cdn_kernels.backends import cuda, dispatch
from tests.kernels import cuda_libraries


def pytest_collection_modifyitems(items):
    """Mark what runs on a GPU, where there is one."""
    for item in items:
        places = getattr(item, "callspec", None) and item.callspec.params.get("place")
        if "gpu" in (places, *item.fixturenames):
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    if cuda_libraries.COMPILER is None or sys.platform != "linux":
        pytest.skip("no C++ compiler, or not Linux, which the imitation of a GPU needs")
    return cuda_libraries.emulated(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def chip(emulated, monkeypatch):
    """Let the backend run on the processor; the library's `emulate` says what GPU is imitated."""
    monkeypatch.setattr(cuda, "LIBRARY", emulated)
    monkeypatch.setattr(cuda, "_stream", lambda x: None)
    monkeypatch.setitem(dispatch._CAN_USE, "cuda", lambda device, dtype: None)
    emulated.emulate(*cuda_libraries.H200, False)
    return emulated


@pytest.fixture
def gpu():
    """Skip a test where the CUDA library cannot run."""
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    reason = cuda.can_use_cuda(torch.device("cuda"), torch.float32)
    if reason:
        pytest.skip(reason)


@pytest.fixture(params=["emulated", "gpu"])
def place(request):
    """Where a test runs: the device that its tensors are made on."""
    if request.param == "emulated":
        request.getfixturevalue("chip")
        yield torch.device("cpu")
    else:
        request.getfixturevalue("gpu")
        with torch.device("cuda"):
            yield torch.device("cuda")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The library for sm_80 and sm_90a, the installed one if it is newer than its sources."""
    if cuda_libraries.NVCC is None:
        pytest.skip("nvcc is not installed")
    return cuda_libraries.compiled(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="session")
def inspected(compiled):
    if cuda_libraries.cuobjdump() is None:
        pytest.skip("neither CUDA's cuobjdump nor triton's is installed")
    return compiled
