"""The Triton kernels without a GPU: who can run them, and what they compile to for GPUs that need not be there."""

import re
from types import SimpleNamespace

import pytest
import torch

import cdn
import cdn_kernels
from cdn_kernels.backends import convolution_choice, dispatch, interface
from cdn_kernels.backends import triton as backend
from cdn_kernels.backends.dispatch import resolve
from tests.kernels.fresh import printed_by

CUDA = torch.device("cuda")


# ------------------------------------------------------------------------------------------------------------
# Who can run
# ------------------------------------------------------------------------------------------------------------


def test_importing_the_library_does_not_import_triton():
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import cdn_kernels; "
        "assert ('triton' in sys.modules) == before"
    )
    printed_by(code)


def gpu(monkeypatch, major, minor=0):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major, minor=minor, name="a GPU")
    )


@pytest.mark.skipif(
    not backend.INSTALLED or backend.INTERPRETED, reason="triton is not installed, or runs its interpreter"
)
def test_reasons_are_given(monkeypatch):
    with pytest.raises(RuntimeError, match="gelu: impl='triton' cannot run: .* on a CUDA device, got device cpu"):
        cdn_kernels.gelu(torch.ones(2), impl="triton")
    gpu(monkeypatch, 7, 5)
    assert "compute capability 8.0 or higher, got 7.5" in backend.can_use_triton(CUDA, torch.float32)
    assert resolve("gelu", "auto", CUDA, torch.float32) == "reference"
    gpu(monkeypatch, 9)
    assert backend.can_use_triton(CUDA, torch.bfloat16) is None
    assert "dtype must be" in backend.can_use_triton(CUDA, torch.int32)
    assert resolve("gelu", "auto", CUDA, torch.float32) == "triton"
    monkeypatch.setattr(backend, "INSTALLED", False)
    assert "triton is not installed" in backend.can_use_triton(CUDA, torch.float32)
    assert resolve("gelu", "auto", CUDA, torch.float32) == "reference"


# ------------------------------------------------------------------------------------------------------------
# Compiled code
# ------------------------------------------------------------------------------------------------------------

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def empty(*shape, dtype):
    return torch.empty(1, dtype=dtype, device="meta").expand(shape)


def norm_sweeps(operations, shape, groups, dtype, keep, last):
    """Run the three sweeps of the norm."""
    batch, channels = shape[:2]
    real = FP64 if dtype == FP64 else FP32
    x, gain = empty(*shape, dtype=dtype), empty(channels, dtype=real)
    run = lambda sweep, **tensors: operations.gelu_norm(
        sweep, x, gain, groups, 1e-3, keep, last, statistics=empty(batch, 4 * groups + 1, dtype=real), out=x, **tensors
    )
    share = empty(batch, channels, dtype=real)
    run(interface.FORWARD, residual=x, sum=x)
    run(interface.BACKWARD, grad=x, source=x, gain_grad=share)
    run(interface.TANGENT, grad=x, tangent=x, tangent_out=x, gain_grad=share)


def gelu_sweeps(operations, dtype):
    u = empty(4096, dtype=dtype)
    operations.gelu(interface.FORWARD, u, None, None, u, None)
    operations.gelu(interface.BACKWARD, u, u, u, u, None)
    operations.gelu(interface.TANGENT, u, u, u, u, u)


def pooling(operations, dtype, last):
    real = FP64 if dtype == FP64 else FP32
    x = empty(4, 64, 32, 32, dtype=dtype)
    for kind in (interface.DOT, interface.SCALE, interface.MEAN, interface.SPREAD):
        values = empty(4, *((64,) if kind in (interface.MEAN, interface.SPREAD) else ()), dtype=real)
        operations.pool(kind, x.shape, last, values, a=None if kind == interface.SPREAD else x, b=x, out=x)


def noise(operations, dtype, channels):
    x, sigma = empty(4, 3, 32, 32, dtype=dtype), empty(4, dtype=FP64 if dtype == FP64 else FP32)
    key = 2**40, torch.empty((), dtype=torch.int64, device="meta")
    operations.sample_noise(x, sigma, x, "log-uniform", 0.1, 1.0, 0.2, "stratified", *key, channels)
    operations.denoising(x, sigma, *key, channels, errors=sigma)
    places = 0, empty(4, dtype=torch.int64)
    operations.sample_noise(x, sigma, x, "uniform", 0.1, 1.0, 0.2, "independent", *key, channels, *places)
    operations.denoising(x, sigma, *key, channels, *places, factors=sigma, gradient=x)


# The stages of a residual network of width 64 on 32 x 32 pixels, a large image, and other dtypes, layouts and widths.
STAGES = [((4, 64, 32, 32), 8), ((4, 128, 16, 16), 16), ((4, 256, 8, 8), 32), ((4, 512, 4, 4), 64)]
NORMS = [
    *((*stage, BF16, True, True) for stage in STAGES),
    (*STAGES[0], BF16, False, True),
    ((2, 64, 224, 224), 8, BF16, True, True),
    (*STAGES[0], FP32, True, True),
    (*STAGES[0], FP64, True, True),
    (*STAGES[0], BF16, True, False),
    ((2, 200, 7, 3), 25, FP32, True, True),
    ((2, 12, 5, 3), 2, FP16, False, False),
    ((1, 4096, 1, 2), 4, BF16, True, True),
]
CASES = {
    **{"norm " + " ".join(map(str, case)): (norm_sweeps, case) for case in NORMS},
    **{f"gelu {dtype}": (gelu_sweeps, (dtype,)) for dtype in (BF16, FP16, FP32, FP64)},
    **{
        f"pool {dtype} {last}": (pooling, (dtype, last))
        for dtype, last in ((BF16, True), (BF16, False), (FP32, True), (FP64, True))
    },
    **{
        f"noise {dtype} {channels}": (noise, (dtype, channels))
        for dtype, channels in ((BF16, 0), (BF16, 3), (FP32, 3), (FP64, 0))
    },
}


# Where images are read and written in 16 bytes: channels last, rows of whole such; not the noise, which lies across.
WIDE = {name for name in CASES if not name.startswith("noise") and "(2, 200" not in name and "(2, 12" not in name}
WHOLE = 0  # the phase of the norm that reads and writes all of its images


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("case", CASES)
def test_kernels_compile_to_what_they_should(triton_compile, case, capability):
    run, arguments = CASES[case]
    with triton_compile.launched_to_nowhere(capability) as launches:
        run(triton_compile.operations, *arguments)
    assert launches
    for launch in launches:
        kernel, warps = triton_compile.code_of(launch), launch.constants["num_warps"]
        print(
            f"{launch.name} {launch.constants.get('PHASE', '')}: {warps} warps, {kernel.registers} registers, "
            f"{kernel.stack} bytes spilled, {kernel.shared} bytes shared"
        )
        assert kernel.stack == 0
        # A program must fit on the multiprocessor: 65536 registers, and the shared memory that needs no asking.
        assert kernel.registers * 32 * warps <= 65536 and kernel.shared <= 48 * 1024
        # phi of a value must not depend on what is done with it: ptxas may fuse these, and not their .rn forms.
        assert not re.search(r"\b(mul|add|sub)(\.ftz)?\.f(32|64)\b", kernel.ptx)
        images = sum(isinstance(a, torch.Tensor) and a.numel() >= 4096 for a in launch.arguments)
        if case in WIDE and launch.constants.get("PHASE", WHOLE) == WHOLE:
            assert kernel.wide_loads + kernel.wide_stores >= images


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("batch", [1, 16])  # Triton compiles sizes of 1, and those divisible by 16, anew
def test_a_training_step_passes_through_tritons_own_launches(monkeypatch, triton_compile, batch, precision):
    monkeypatch.setitem(dispatch._CAN_USE, "triton", lambda device, dtype: None)
    monkeypatch.setattr(convolution_choice, "CHOICE", "own")
    # What no kernel wrote is not to be looked at, as the memory of a GPU is not.
    monkeypatch.setattr("cdn_kernels.noise.can_be_read", lambda x: False)
    model = cdn.gradresnet_small(10, 1, width=16).to(memory_format=torch.channels_last)
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with triton_compile.launched_to_nowhere(90) as launches, half:
        cdn.joint_step(
            model,
            torch.rand(batch, 1, 8, 8),
            torch.zeros(batch, dtype=torch.int64),
            cdn.NoiseLevels(clean_share=0.5),
            cdn.Noise(0),
            impl="triton",
        )
    assert {
        "forward",
        "backward",
        "tangent",
        "to_images",
        "to_filters",
        "_add_noise",
        "_sample_sigma",
        "_residual_squares",
        "_residual_gradient",
        "_mean",
        "_spread",
        "_dot",
        "_scale",
    } <= {launch.name for launch in launches}
    assert all(launch.compiled.metadata.shared <= 227 << 10 for launch in launches)
