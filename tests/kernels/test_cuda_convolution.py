"""The convolution in CUDA C++, against float64: on a GPU where there is one, and imitated on the processor.

Memory is filled with NaN before the kernel writes to it, and the imitation does the same with shared memory.
"""

import re

import pytest
import torch

import cdn_kernels
from cdn_kernels.backends import convolution_choice as choice
from cdn_kernels.backends import cuda
from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT
from cdn_kernels.ops import convolve
from tests.kernels import convolutions, cuda_libraries
from tests.kernels.convolutions import (
    assert_convolutions_are_as_exact_as_eager,
    assert_nan_stays_where_it_belongs,
    assert_slopes_are_part_of_the_maps,
    assert_what_follows_a_map_is_exact,
    exact,
    maps_that_run,
    nhwc,
    problem,
)
from tests.kernels.oracle import assert_as_exact_as_eager, assert_captured, assert_rounded_once

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
KERNEL = "convolutionI"  # in mangled names
A100 = (163 << 10, 108)  # bytes of shared memory of a block, multiprocessors
# (B, H, W): a pixel, part of a tile, a tile and one row and column more, whole tiles, images of one row and column.
CASES = [(2, 1, 1), (1, 7, 9), (2, 9, 33), (1, 32, 32), (2, 8, 64), (1, 1, 40), (1, 20, 1)]
dtypes = pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
maps = pytest.mark.parametrize("kind", [CONV_FORWARD, CONV_INPUT], ids=["forward", "input"])


@pytest.fixture(autouse=True)
def _own(monkeypatch):
    monkeypatch.setattr(choice, "CHOICE", "own")


@pytest.fixture(params=[cuda_libraries.H200, A100], ids=["by groups", "by warps"])
def way(request, place):
    """How products are made: by groups of four warps, as only an H200 can, or by warps."""
    if place.type == "cpu":
        request.getfixturevalue("chip").emulate(*request.param, False)
    elif (torch.cuda.get_device_capability() == (9, 0)) != (request.param == cuda_libraries.H200):
        pytest.skip("not on this GPU")


def layer(batch, height, width, dtype=BF16):
    return problem((batch, 64, 64, height, width), 3, 1, dtype=dtype)


def run(kind, operands, shapes, **options):
    return convolutions.run(cuda.conv2d, kind, operands, shapes, 1, **options)


def inputs_of(batch, height, width, dtype=BF16):
    draw = lambda *shape: torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    return draw(batch, 64, height, width), draw(64, 64, 3, 3) / 24


@maps
@pytest.mark.parametrize("dtype, batch, height, width", [*((BF16, *case) for case in CASES), (F16, 1, 7, 9)], ids=str)
def test_maps_are_as_exact_as_one_rounding(way, kind, dtype, batch, height, width):
    operands, shapes = layer(batch, height, width, dtype)
    assert_rounded_once(run(kind, operands, shapes), *exact(kind, operands, 3, 1))


@maps
@dtypes
def test_what_follows_a_map_is_exact(way, kind, dtype):
    assert_what_follows_a_map_is_exact(cuda.conv2d, kind, *layer(1, 9, 35, dtype), 3, 1)


@maps
def test_infinity_and_nan_stay_where_they_belong(way, kind):
    assert_nan_stays_where_it_belongs(cuda.conv2d, kind, (2, 64, 64, 6, 34), 4, 31)


def test_addresses_may_be_any(place):
    operands, shapes = layer(1, 3, 5)
    shifted = [
        nhwc(*t.shape)[1][1 : 1 + t.numel()].view(t.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2).copy_(t)
        for t in operands[CONV_FORWARD]
    ]
    assert all(t.data_ptr() % 16 for t in shifted)
    first, second, more = shifted
    for options in ({}, dict(added=more), dict(u=more)):
        aligned = dict.fromkeys(options, operands[CONV_FORWARD][2])
        out = run(CONV_FORWARD, {CONV_FORWARD: (first, second, more)}, shapes, **options)
        assert torch.equal(out, run(CONV_FORWARD, operands, shapes, **aligned))


@maps
@pytest.mark.parametrize("shared", [cuda_libraries.H200[0], A100[0]], ids=["by groups", "by warps"])
def test_blocks_and_the_order_of_events_do_not_matter(chip, shared, kind):
    """Without a barrier where one is needed they would; see emulation.cpp for what is in another order."""
    operands, shapes = layer(3, 5, 33)
    results = []
    for multiprocessors, otherwise in ((132, False), (1, False), (1, True), (5, True)):
        chip.emulate(shared, multiprocessors, otherwise)
        results.append(run(kind, operands, shapes))
    assert all(torch.equal(results[0], other) for other in results[1:])


# ------------------------------------------------------------------------------------------------------------
# Compiled code
# ------------------------------------------------------------------------------------------------------------


# What a warp needs of 16 summed channels and a column of taps, in four steps of a loop or in all twelve: products, and
# reads of 512 bytes.
@pytest.mark.parametrize(
    "architecture, product, products, reads",
    [("sm_80", "HMMA.16816.F32", 4 * 3 * 32, 4 * 18), ("sm_90a", "HGMMA.64x64x16.F32", 12 * 3 * 4, 12 * 6)],
)
def test_tensor_cores_multiply_and_nothing_is_spilled(inspected, architecture, product, products, reads):
    usage = {name: found for name, found in cuda_libraries.usage(inspected, architecture).items() if KERNEL in name}
    code = cuda_libraries.machine_code(inspected, architecture, usage)
    assert len(usage) == 2
    for kernel, (registers, local) in usage.items():
        print(f"{kernel}: {registers} registers, {local} bytes of local memory")
        assert local == 0 and registers * 256 <= 65536
        assert len(re.findall(rf"\b{re.escape(product)}\b", code[kernel])) == products
        assert len(re.findall(r"\bLDSM\b", code[kernel])) == reads
        # One wait for every step and the last: the compiler adds its own where it cannot let products overlap.
        assert len(re.findall(r"\bWARPGROUP\.DEPBAR\b", code[kernel])) == (12 if "HGMMA" in product else 0)


def test_memory_is_read_and_written_16_bytes_at_a_time(inspected):
    code = {name: text for name, text in cuda_libraries.portable_code(inspected).items() if KERNEL in name}
    assert len(code) == 2
    for kernel, text in code.items():
        accesses = re.findall(r"\b((?:ld|st)\.global\S*|cp\.async\.c\S* [^;]*)", text)
        copies = [access for access in accesses if access.startswith("cp")]
        assert copies and all(re.search(r"cp\.async\.cg\S* [^,]*, [^,]*, 16", copy) for copy in copies), kernel
        others = {access for access in accesses if not access.startswith("cp")}
        assert others and all(re.search(r"\.v4\.[ubf]32", access) for access in others), (kernel, others)


# ------------------------------------------------------------------------------------------------------------
# In the operations
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, size", [(BF16, (2, 7, 9)), (F16, (1, 7, 9)), (BF16, (1, 32, 32)), (BF16, (1, 1, 1))], ids=str
)
def test_operations_are_as_exact_as_eager_and_use_the_kernel(place, monkeypatch, dtype, size):
    maps = CONV_FORWARD, CONV_INPUT
    assert_convolutions_are_as_exact_as_eager(monkeypatch, cuda, "cuda", inputs_of(*size, dtype), 1, maps)


def test_a_residual_block_is_as_exact_as_eager_and_multiplies_by_slopes(place, monkeypatch):
    x, *filters = *inputs_of(1, 7, 9), inputs_of(1, 1, 1)[1]
    block = lambda impl: lambda x, *filters: x + cdn_kernels.conv2d_gelu_conv2d(x, *filters, impl=impl)
    assert_as_exact_as_eager(block("cuda"), block("reference"), (x, *filters))
    # The gradient of a square asks for its value again, so that second derivatives meet a backward pass on their way.
    squared = lambda impl: lambda *tensors: block(impl)(*tensors).square()
    assert_as_exact_as_eager(squared("cuda"), squared("reference"), (x, *filters))
    assert_slopes_are_part_of_the_maps(monkeypatch, cuda, block("cuda"), x, filters)


@pytest.mark.parametrize(
    "shape, size, stride, dtype",
    [
        ((2, 64, 64, 6, 5), 3, 1, F32),
        ((2, 32, 64, 6, 5), 3, 1, BF16),
        ((2, 64, 128, 6, 5), 3, 1, BF16),
        ((2, 64, 64, 6, 5), 1, 1, BF16),
        ((2, 64, 64, 6, 5), 3, 2, BF16),
    ],
    ids=str,
)
def test_what_the_kernel_does_not_take_is_torchs(place, monkeypatch, shape, size, stride, dtype):
    batch, inputs, outputs, height, width = shape
    x = torch.randn(batch, inputs, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(outputs, inputs, size, size) / 24).to(dtype)
    ulps = 8 if dtype == F32 else 1
    assert_convolutions_are_as_exact_as_eager(monkeypatch, cuda, "cuda", (x, weight), stride, (), ulps=ulps)
    operands, shapes = problem(shape, size, stride, dtype=dtype)
    for kind in (CONV_FORWARD, CONV_INPUT):
        with pytest.raises(ValueError, match="3x3 with stride 1, from 64 to 64 channels, of bfloat16 or float16"):
            cuda.conv2d(kind, *operands[kind], shapes, stride)


def test_the_choice_and_the_layout_decide(place, monkeypatch):
    calls = maps_that_run(monkeypatch, cuda)
    x, weight = inputs_of(1, 4, 4)
    convolve.forward(x.contiguous(), weight.contiguous(), 1, "cuda")
    convolve.forward(x[:0], weight, 1, "cuda")
    convolve.by_weight(x, x, 3, 1, "cuda")
    for name in ("torch", "measured"):
        monkeypatch.setattr(choice, "CHOICE", name)
        convolve.forward(x, weight, 1, "cuda")
    assert not calls
    monkeypatch.setattr(choice, "CHOICE", "own")
    convolve.forward(x, weight, 1, "cuda")
    assert calls == [(CONV_FORWARD,)]


def test_the_size_of_a_convolution_and_the_gpu_are_checked(chip):
    one = torch.ones(1, 64, 1, 1, dtype=BF16)
    runs = lambda batch, height, width: cuda.conv2d_is_faster(
        CONV_FORWARD, one, ((batch, 64, height, width), (64, 64, 3, 3)), 1, False
    )
    assert runs(1 << 21, 32, 32) and runs(1, 1 << 12, (1 << 12) - 1)  # 2^37 elements, and a sample of nearly 2^30
    for shape in ((1, 1 << 12, 1 << 12), (1 << 30, 1, 1), (1 << 28, 32, 32)):
        assert not runs(*shape)
        with pytest.raises(ValueError, match=r"2\^30"):
            cuda.conv2d(CONV_FORWARD, one, one, one, ((shape[0], 64, *shape[1:]), (64, 64, 3, 3)), 1)
    with pytest.raises(RuntimeError, match="out of range"):
        cuda.conv2d(7, one, one, one, (one.shape, (64, 64, 3, 3)), 1)
    chip.emulate(*A100, False)
    assert runs(1, 32, 32)
    chip.emulate(99 << 10, 84, False)
    assert not runs(1, 32, 32)
    with pytest.raises(ValueError, match="GPUs whose blocks may have 157 KiB of shared memory"):
        cuda.conv2d(CONV_FORWARD, one, one, one, (one.shape, (64, 64, 3, 3)), 1)


# ------------------------------------------------------------------------------------------------------------
# On a GPU only
# ------------------------------------------------------------------------------------------------------------


def test_convolutions_are_captured_in_a_graph(gpu):
    with torch.device("cuda"):
        x, weight = inputs_of(4, 32, 32)
        assert_captured(lambda: [cdn_kernels.conv2d_gelu(x, weight, impl="cuda")])


def test_batches_may_have_more_than_2_31_elements(gpu):
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("less than 24 GiB of memory")
    with torch.device("cuda"):
        x = torch.zeros(33000, 64, 32, 32, dtype=BF16).contiguous(memory_format=torch.channels_last)
        last, weight = inputs_of(1, 32, 32)
        x[-1:] = last
        y = convolve.forward(x, weight, 1, "cuda")
        assert torch.equal(y[-1:], convolve.forward(last, weight, 1, "cuda")) and not y[:-1].any()
