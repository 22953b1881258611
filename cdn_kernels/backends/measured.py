"""What was measured on GPUs, for impl="auto" to choose by.

The table is measured.json, which ``python -m benchmarks.choices`` writes from what the benchmarks recorded. For every
GPU, by its name, it has::

    date, machine   when and with what it was measured, see cdn_kernels.machine
    passes          {"OPERATION DTYPE": {fastest, others}}
    layers          {"DTYPE INPUTS OUTPUTS SIZE STRIDE": {fastest, others, pixels}}, all maps of a convolution together
    convolutions    {"BACKEND MAP DTYPE INPUTS OUTPUTS SIZE STRIDE": {torch, pixels}}

``others`` says how many times as long as the fastest backend each of the others takes, and ``torch`` how many times as
long as the backend's own kernel torch's convolution takes: [median, low, high] with the interval that holds the true
median with 95 % probability. Only what differs beyond the noise decides: elsewhere ``fastest`` is null. ``pixels`` are
those of the results of a batch, and smaller batches were not measured. MAP is one of interface.MAPS, with "_gelu" if
GELU follows or, in a gradient, its derivative.
"""

import json
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from cdn_kernels.backends.interface import MAPS, ConvolutionShape


class Pass(TypedDict):
    """A row of passes."""

    fastest: str | None
    others: dict[str, list[float]]


class Layer(Pass):
    """A row of layers."""

    pixels: int


class Convolution(TypedDict):
    """A row of convolutions."""

    torch: list[float]
    pixels: int


class Measurements(TypedDict):
    """What the table says of a GPU."""

    date: str
    machine: dict[str, Any]
    passes: dict[str, Pass]
    layers: dict[str, Layer]
    convolutions: dict[str, Convolution]


FILE = Path(__file__).with_name("measured.json")
TABLE: dict[str, Measurements] = json.loads(FILE.read_text())


def gpu(device: torch.device) -> Measurements | None:
    """Return the part of the table that is about a device, None if there is none."""
    if not TABLE or device.type != "cuda" or not torch.cuda.is_available():
        return None
    return TABLE.get(torch.cuda.get_device_properties(device).name)


def fastest(operation: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return the backend that was measured to run an operation fastest on a device, or None."""
    found = gpu(device)
    row = found and found["passes"].get(f"{operation} {name_of(dtype)}")
    return row["fastest"] if row else None


def fastest_for_layer(device: torch.device, dtype: torch.dtype, shape: ConvolutionShape, stride: int) -> str | None:
    """Return the backend that was measured to run all maps of a convolution fastest, its own and those of torch.

    Args:
        shape: [B, I, H, W] of the images and [O, I, k, k] of the filters, as a pair.

    Returns:
        Its name, or None.
    """
    found = gpu(device)
    row = found and found["layers"].get(f"{name_of(dtype)} {layer(shape, stride)}")
    return row["fastest"] if row and pixels(shape, stride) >= row["pixels"] else None


def convolution_is_faster(
    backend: str, kind: int, x: Tensor, shape: ConvolutionShape, stride: int, activation: bool
) -> bool:
    """Tell whether a backend's own kernel was measured to be faster than torch's convolution.

    Args:
        backend: "triton" or "cuda".
        kind: CONV_FORWARD, CONV_INPUT or CONV_WEIGHT.
        x: any tensor on the device and of the dtype of the convolution.
        shape, stride: as for :func:`fastest_for_layer`.
        activation: whether GELU follows, or its derivative a gradient by the input.
    """
    found = gpu(x.device)
    name = MAPS[kind] + ("_gelu" if activation else "")
    row = found and found["convolutions"].get(f"{backend} {name} {name_of(x.dtype)} {layer(shape, stride)}")
    return bool(row and is_faster(row) and pixels(shape, stride) >= row["pixels"])


def is_faster(row: Convolution) -> bool:
    """Tell whether a row of convolutions says that torch's takes longer, beyond the noise."""
    _, low, _ = row["torch"]
    return low > 1


def layer(shape: ConvolutionShape, stride: int) -> str:
    """Return the name of a convolution of any batch and size of images."""
    (_, inputs, _, _), (outputs, _, size, _) = shape
    return f"{inputs} {outputs} {size} {stride}"


def pixels(shape: ConvolutionShape, stride: int) -> int:
    """Return how many pixels the result of a convolution has, in all of a batch."""
    (batch, _, height, width), _ = shape
    return batch * -(-height // stride) * -(-width // stride)


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def describe() -> str:
    """Say in a sentence what impl="auto" means on the GPU at hand, or where it was measured if there is none."""
    usual = "the triton kernels, and torch's convolutions"
    if not torch.cuda.is_available():
        return f"measured on {' and '.join(TABLE)}" if TABLE else f"nothing was measured: on any GPU it means {usual}"
    device = torch.device("cuda")
    name, found = torch.cuda.get_device_properties(device).name, gpu(device)
    if not found:
        return f"nothing was measured on {name}, so that it means {usual} (python -m benchmarks.gpu_report measures)"
    quicker = {key: row["fastest"] for key, row in {**found["passes"], **found["layers"]}.items() if row["fastest"]}
    cases = ", ".join(f"{key}: {backend}" for key, backend in quicker.items()) or "no backend was faster than another"
    return f"measured on {name} on {found['date'][:10]}: {cases}"
