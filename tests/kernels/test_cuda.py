"""The CUDA library without a GPU: it loads, says where it runs and where not, and its machine code is as meant."""

import re
from types import SimpleNamespace

import pytest
import torch

import cdn_kernels
from cdn_kernels import info
from cdn_kernels.backends import cuda
from cdn_kernels.backends.dispatch import OF_OTHERS, OPERATIONS, resolve
from cdn_kernels.backends.driver import why_no_gpu
from tests.kernels import cuda_libraries

CUDA = torch.device("cuda")
BOTH = ({80, 90}, {90})  # the architectures of machine code, and those that the driver compiles


# ------------------------------------------------------------------------------------------------------------
# Who can run
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "capability, driver, toolkit, architectures, reason",
    [
        (80, 13000, 13000, BOTH, None),
        (86, 13010, 13000, BOTH, None),
        (90, 13000, 13010, BOTH, None),  # within a major version older drivers run machine code
        (120, 13000, 13000, BOTH, None),
        (75, 13000, 13000, BOTH, "compute capability 8.0 or higher, got 7.5 (a GPU)"),
        (90, 12080, 13000, BOTH, "the driver supports CUDA 12.8, and the library was built with CUDA 13.0"),
        (90, 0, 13000, BOTH, "the driver supports CUDA 0.0"),
        (120, 13000, 13010, BOTH, "older than the library's 13.1; reinstall with CDN_CUDA_ARCHITECTURES=120"),
        (80, 13000, 13000, ({90}, set()), "built for compute capability 9.0, and the GPU has 8.0 (a GPU)"),
        (100, 13000, 13000, ({90}, set()), "reinstall with CDN_CUDA_ARCHITECTURES=100"),
        (86, 13000, 13000, ({89}, set()), "built for compute capability 8.9"),
    ],
)
def test_a_gpu_is_refused_with_a_reason(capability, driver, toolkit, architectures, reason):
    found = cuda.why_not_on(capability, "a GPU", driver, toolkit, architectures)
    assert found is None if reason is None else reason in found


def test_architectures_are_read_from_the_build():
    assert cuda.built_for("nvcc 13.0: sm_80 sm_90a compute_90") == BOTH
    assert cuda.built_for("nvcc 13.0: sm_120") == ({120}, set())


def library(**versions):
    numbers = dict(driver=13000, toolkit=13000) | versions
    return SimpleNamespace(
        cdn_cuda_build=lambda: b"nvcc 13.0: sm_80 sm_90 compute_90",
        **{f"cdn_cuda_{name}": lambda n=n: n for name, n in numbers.items()},
    )


def test_reasons_are_given(monkeypatch):
    ones = torch.ones(1, 4, 2, 2), torch.ones(4)
    monkeypatch.setattr(cuda, "MISSING", "it was not built")
    with pytest.raises(RuntimeError, match="gelu_group_norm: impl='cuda' cannot run: it was not built"):
        cdn_kernels.gelu_group_norm(*ones, 2, impl="cuda")
    monkeypatch.setattr(cuda, "MISSING", None)
    monkeypatch.setattr(cuda, "LIBRARY", library())
    with pytest.raises(RuntimeError, match="on a CUDA device, got device cpu"):
        cdn_kernels.gelu_group_norm(*ones, 2, impl="cuda")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the cuda backend has no kernel for this"):
        patch.setitem(OPERATIONS, "gelu", ("cpu",))
        cdn_kernels.gelu(ones[1], impl="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.can_use_cuda(CUDA, torch.float32) == why_no_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=9, minor=0, name="a GPU")
    )
    assert cuda.can_use_cuda(CUDA, torch.bfloat16) is None
    assert "dtype must be" in cuda.can_use_cuda(CUDA, torch.int32)
    monkeypatch.setattr(cuda, "LIBRARY", library(driver=12080))
    assert "the driver supports CUDA 12.8" in cuda.can_use_cuda(CUDA, torch.float32)


def test_it_is_chosen_by_name_only(monkeypatch):
    monkeypatch.setattr(cuda, "can_use_cuda", lambda device, dtype: None)
    for operation, backends in OPERATIONS.items():
        assert ("cuda" in backends) == (operation not in OF_OTHERS)
        assert resolve(operation, "auto", CUDA, torch.float32) != "cuda"


def test_information_says_why_not(monkeypatch, capsys):
    monkeypatch.setattr(cuda, "MISSING", "the CUDA library was not built")
    info.main()
    assert "cuda        not available: the CUDA library was not built" in capsys.readouterr().out
    monkeypatch.setattr(cuda, "MISSING", None)
    monkeypatch.setattr(cuda, "LIBRARY", library(driver=0))
    info.main()
    printed = capsys.readouterr().out
    assert "built by nvcc 13.0: sm_80 sm_90 compute_90" in printed


def test_a_library_that_is_missing_is_explained(tmp_path):
    assert "was not built; reinstall with CDN_CUDA=1" in cuda.load(tmp_path / "none.so")[1]


# ------------------------------------------------------------------------------------------------------------
# Machine code
# ------------------------------------------------------------------------------------------------------------


def test_the_library_loads_without_a_gpu(compiled):
    loaded, missing = cuda.load(compiled)
    assert missing is None and loaded.cdn_cuda_toolkit() >= 12000 and loaded.cdn_cuda_driver() >= 0
    assert {80, 90} <= cuda.built_for(loaded.cdn_cuda_build().decode())[0]
    if loaded.cdn_cuda_driver() == 0:  # what a launch then says
        status = loaded.cdn_cuda_add_noise(None, None, None, 0, 1, 4, 0, 0, 0, 0, None, None)
        assert "driver" in loaded.cdn_cuda_error(status).decode()
    assert loaded.cdn_cuda_error(-1).decode() == "an argument is out of range"


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_kernels_fit_their_registers(inspected, architecture):
    usage = cuda_libraries.usage(inspected, architecture)
    passes = {kernel for kernel in usage if re.search(r"(norm_\w+|gelu_pass|pool_\w+)I", kernel)}
    assert len(passes) == 21 + 24 + 32 and len(usage) > 100
    for kernel, (registers, local) in usage.items():
        print(f"{kernel}: {registers} registers, {local} bytes of local memory")
        assert registers <= (128 if kernel in passes else 255)
        # Nothing is spilled; the sine of a double keeps a table there.
        assert local == 0 or ("WholeIdE" in kernel and kernel not in passes)


WIDE = r"\.global(?:\.nc)?\.v(?:4\.[ubf]32|2\.[ubf]64)"  # 16 bytes


def accesses(code, pattern, count):
    """Yield (name, 16-byte loads, 16-byte stores) of the kernels that a pattern finds, of which there are so many."""
    found = {kernel: text for kernel, text in code.items() if re.search(pattern, kernel)}
    assert len(found) == count
    for kernel, text in found.items():
        yield kernel, len(re.findall("ld" + WIDE, text)), len(re.findall("st" + WIDE, text))


def test_kernels_read_and_write_16_bytes_and_use_no_atomics(inspected):
    code = cuda_libraries.portable_code(inspected)
    assert len(code) > 100 and not any(re.search(r"\b(atom|red)\.", text) for text in code.values())
    wide = r"I\w*(Pair\w*Li8E|WholeIfEELi4E|WholeIdEELi2E)"
    for kernel, _, stores in accesses(code, r"norm_\w+" + wide, 9):
        tensors = 2 + ("norm_tangent" in kernel)  # x and residual; v and its gradient; and the tangent
        assert len(re.findall(r"cp\.async\.cg\.shared\.global [^;]*, 16", code[kernel])) >= tensors, kernel
        assert stores >= 1 + ("norm_backward" not in kernel), kernel
    for kernel, loads, stores in accesses(code, "gelu_pass" + wide, 12):
        sweep = int(re.search(r"Li(\d)EEEv", kernel).group(1))
        assert loads >= 2 * (1, 3, 3)[sweep] and stores >= 2 * (1, 1, 2)[sweep], kernel  # of two vectors a thread
    for kernel, loads, stores in accesses(code, r"pool_\w+" + wide, 16):
        assert loads >= (8 if "pool_sum" in kernel else 4) and stores >= 4 * ("pool_write" in kernel), kernel
    for kernel, loads, stores in accesses(code, r"(add_noise|residual_\w+)I.*NoiseLayoutE[13]E", 24):
        assert loads and (stores or "residual_squares" in kernel), kernel


def test_no_product_and_sum_of_the_noise_are_one_operation(inspected):
    """For its roundings must be those of the CPU; double takes the C library's functions, which fuse some."""
    noise = {
        kernel: text
        for kernel, text in cuda_libraries.portable_code(inspected).items()
        if re.search(r"(add_noise|residual_\w+)I.*(WholeIf|Pair)", kernel)
    }
    assert len(noise) == 27 and not any(re.search(r"\bfma\.", text) for text in noise.values())


def test_newer_gpus_find_code_to_compile(inspected):
    assert re.search(r"\.target sm_90\b", cuda_libraries.inspect(inspected, "-ptx"))
