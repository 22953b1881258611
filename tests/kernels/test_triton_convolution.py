"""Our own convolutions in Triton: when they run, and what they compile to for GPUs that need not be there."""

import re
from types import SimpleNamespace

import pytest
import torch

from cdn_kernels import info
from cdn_kernels.backends import convolution_choice as choice
from cdn_kernels.backends import measured
from cdn_kernels.backends import triton as backend
from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT
from cdn_kernels.backends.triton.convolution_choice import LARGEST_TILE, conv2d_is_faster
from cdn_kernels.backends.triton.convolution_tiles import RAGGED, TILES, Tile
from tests.kernels.convolutions import float32_in

CUDA = torch.device("cuda")
BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64

# ------------------------------------------------------------------------------------------------------------
# When they run
# ------------------------------------------------------------------------------------------------------------


def runs():
    x = SimpleNamespace(device=CUDA, dtype=BF16)
    return conv2d_is_faster(CONV_FORWARD, x, ((8, 64, 32, 32), (64, 64, 3, 3)), 2, True)


def test_the_environment_decides(monkeypatch, capsys):
    monkeypatch.setattr(measured, "TABLE", {})
    for name, expected in (("own", "our own"), ("torch", "those of torch"), ("measured", "not measured on this")):
        monkeypatch.setattr(choice, "CHOICE", name)
        assert runs() == (name == "own") and expected in choice.chosen("triton")
    monkeypatch.setattr(backend, "can_use_triton", lambda *_: None)
    monkeypatch.setattr(backend, "INTERPRETED", True)
    info.main()
    assert "not measured on this" in capsys.readouterr().out


def test_tiles_count_as_the_limits_suppose():
    tables = *TILES.values(), *RAGGED.values()
    assert max(tile.rows for choices in tables for _, _, tile in choices) <= LARGEST_TILE


# ------------------------------------------------------------------------------------------------------------
# Compiled code
# ------------------------------------------------------------------------------------------------------------

IMAGES, FILTERS = (CONV_FORWARD, CONV_INPUT), (CONV_WEIGHT,)
EVERY = IMAGES + FILTERS
# (maps, dtype, (B, I, O, side), size, stride): every tile in every map that uses it.
LAYERS = [
    (EVERY, BF16, (64, 64, 64, 32), 3, 1),
    (EVERY, BF16, (512, 128, 256, 16), 3, 2),
    (IMAGES, BF16, (64, 24, 24, 32), 3, 1),
    (IMAGES, BF16, (64, 256, 512, 8), 1, 2),
    (EVERY, BF16, (512, 3, 64, 32), 3, 1),
    (EVERY, FP32, (64, 64, 64, 32), 3, 1),
    (IMAGES, FP32, (64, 24, 24, 32), 3, 2),
    (EVERY, FP32, (64, 3, 65, 32), 3, 1),
    (EVERY, FP64, (64, 64, 64, 32), 3, 2),
]
# Divisions by a side that is no power of two take registers.
ODD = [
    *((maps, dtype, (*shape[:3], 15), size, stride) for maps, dtype, shape, size, stride in LAYERS),
    (IMAGES, BF16, (512, 256, 256, 15), 3, 1),
]
TF32 = EVERY, FP32, (64, 64, 64, 32), 3, 1


def launches(triton_compile, capability, maps, dtype, shape, size, stride):
    """Return what the maps of a layer would launch, with all that can follow a product."""
    batch, inputs, outputs, side = shape
    rows = -(-side // stride)
    empty = lambda *shape: torch.empty(1, dtype=dtype, device="meta").expand(shape)
    x, y = empty(batch, inputs, side, side), empty(batch, outputs, rows, rows)
    weight = empty(outputs, inputs, size, size)
    operands = {CONV_FORWARD: (x, weight, y), CONV_INPUT: (y, weight, x), CONV_WEIGHT: (x, y, weight)}
    with triton_compile.launched_to_nowhere(capability) as result:
        for kind in maps:
            first, second, out = operands[kind]
            more = {CONV_FORWARD: dict(added=out, activation=out), CONV_INPUT: dict(u=out, added=out, product=out)}.get(
                kind, {}
            )
            triton_compile.operations.conv2d(kind, first, second, out, (x.shape, weight.shape), stride, **more)
    return result


def kind_of(launch):
    return {True: CONV_INPUT, False: CONV_FORWARD, None: CONV_WEIGHT}[launch.constants.get("BACK")]


def tile_of(launch):
    constants = launch.constants
    return Tile(*(constants[f"BLOCK_{d}"] for d in "MNK"), constants["num_warps"], constants["num_stages"])


def test_every_tile_is_compiled_below(triton_compile):
    used = {
        (kind_of(launch), layer[1].itemsize, tile_of(launch))
        for layer in LAYERS
        for launch in launches(triton_compile, None, *layer)
        if "BLOCK_M" in launch.constants
    }
    for key, choices in TILES.items():
        assert all((*key, tile) in used for _, _, tile in choices)
    for size, choices in RAGGED.items():
        assert all(any((kind, size, tile) in used for kind in EVERY) for _, _, tile in choices)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("layer, precision", [*((layer, "ieee") for layer in LAYERS + ODD), (TF32, "tf32")], ids=str)
def test_convolutions_compile_to_what_they_should(triton_compile, layer, precision, capability):
    _, dtype, (_, inputs, outputs, _), *_ = layer
    with float32_in(precision):
        launched = launches(triton_compile, capability, *layer)
    for launch in launched:
        kernel, warps = triton_compile.code_of(launch), launch.constants["num_warps"]
        tensor = len(re.findall(r"\bwgmma\.mma_async\.sync|\bmma\.sync", kernel.ptx))
        print(
            f"{launch.name} {launch.constants.get('BACK', '')}: {warps} warps, "
            f"{kernel.registers} registers, {kernel.stack} bytes spilled, {kernel.shared} bytes shared, {tensor} "
            f"tensor instructions, 16 bytes: {kernel.wide_copies} copies, {kernel.wide_loads} loads, "
            f"{kernel.wide_stores} stores"
        )
        assert kernel.stack == 0
        # What a program may have on every GPU from compute capability 8.0.
        assert kernel.registers * 32 * warps <= 65536 and kernel.shared <= 99 * 1024
        assert not re.search(r"\b(mul|add|sub)(\.ftz)?\.f(32|64)\b", kernel.ptx)
        if "BLOCK_M" not in launch.constants:
            continue
        assert (tensor > 0) == (dtype != FP32 or precision == "tf32")
        if dtype.itemsize == 2:
            assert ("wgmma.mma_async.sync" in kernel.ptx) == (capability == 90)
        whole = inputs * dtype.itemsize % 16 == 0 and outputs * dtype.itemsize % 16 == 0
        if whole and precision == "ieee":
            tile = tile_of(launch)
            step = (tile.rows + tile.columns) * tile.depth * dtype.itemsize // (16 * 32 * tile.warps)
            # Both operands, once in the loop and once for every stage before it; nothing is copied in smaller pieces.
            assert kernel.wide_copies == len(re.findall(r"cp\.async\.c[ag]", kernel.ptx)) == step * tile.stages
            images = sum(isinstance(a, torch.Tensor) and a.dim() == 4 for a in launch.arguments[2:])
            assert kernel.wide_stores + kernel.wide_loads >= images
