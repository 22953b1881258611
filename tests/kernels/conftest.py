"""Where tests of the GPU kernels run: on a GPU where there is one, imitated on the processor, or not, but compiled."""

import os
import sys
from pathlib import Path

import pytest
import torch

from cdn_kernels.backends import cuda, dispatch
from cdn_kernels.backends import triton as triton_backend
from tests.kernels import cuda_libraries, triton_place

# What tests use that an imitation of a GPU, or a compiler for one, stands behind.
IMITATED = {"emulated", "compiled", "triton_compile"}

# Deterministic algorithms need it on a GPU, before its library for matrices is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items):
    """Mark what runs on a GPU, and what imitates one."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        place = item.callspec.params.get("place") if hasattr(item, "callspec") else None
        on_triton = "triton_operations" in item.fixturenames
        if place == "gpu" or "gpu" in item.fixturenames or (on_triton and triton_place.ON_GPU):
            item.add_marker("gpu")
        elif place == "emulated" or on_triton or IMITATED.intersection(item.fixturenames):
            item.add_marker("imitated")


# ------------------------------------------------------------------------------------------------------------
# The library in CUDA C++
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def built(request, tmp_path_factory):
    """The folder where compiled libraries stay between runs, until ``pytest --cache-clear``."""
    cache = getattr(request.config, "cache", None)  # there is none under -p no:cacheprovider
    return cache.mkdir("cdn_libraries") if cache else tmp_path_factory.mktemp("cdn_libraries")


@pytest.fixture(scope="session")
def emulated(built):
    if cuda_libraries.COMPILER is None or sys.platform != "linux":
        pytest.skip("no C++ compiler, or not Linux, which the imitation of a GPU needs")
    return cuda_libraries.emulated(built)


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
def compiled(built):
    """The library for sm_80 and sm_90a, the installed one if it is newer than its sources."""
    if cuda_libraries.NVCC is None:
        pytest.skip("nvcc is not installed")
    return cuda_libraries.compiled(built)


@pytest.fixture(scope="session")
def inspected(compiled):
    if cuda_libraries.cuobjdump() is None:
        pytest.skip("neither CUDA's cuobjdump nor triton's is installed")
    return compiled


# ------------------------------------------------------------------------------------------------------------
# The kernels in Triton
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def triton_operations(request):
    """The Triton kernels, on a GPU, or on the processor by Triton's interpreter where the environment asks for it.

    Tensors are made on that device, and memory is filled with NaN before the kernels write to it.
    """
    if triton_place.MISSING:
        file = request.path.relative_to(request.config.rootpath)
        pytest.skip(f"{triton_place.MISSING}; imitated by TRITON_INTERPRET=1 pytest -m imitated {file}")
    from cdn_kernels.backends.triton import operations

    torch.use_deterministic_algorithms(True)  # which fills empty tensors
    with torch.device(triton_place.DEVICE):
        yield operations
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def triton_compile(tmp_path_factory):
    """The helpers that compile Triton kernels for a GPU that need not be there: anew, outside the cache of the user."""
    if not triton_backend.INSTALLED or triton_backend.INTERPRETED:
        pytest.skip("triton is not installed, or its interpreter takes the compiler's place")
    from tests.kernels import triton_compile

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield triton_compile
