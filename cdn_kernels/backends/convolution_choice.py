"""Which convolutions run in our own kernels on a GPU, and which in those of torch with a pass after them.

The environment variable CDN_GPU_CONVOLUTIONS decides: "measured", the default, takes our own where the table says that
they are faster on a device, "own" takes them wherever a backend has a kernel, and "torch" nowhere.
"""
import os

import torch

CHOICE = os.environ.get("CDN_GPU_CONVOLUTIONS", "measured")
MAPS = ("forward", "input", "weight")  # by the numbers of interface.py
# {name of a device: {(backend, map, dtype, inputs, outputs, size of the filters, stride): pixels of y in a batch, at
# least}}, where the map is one of MAPS or "forward_gelu", as in ("triton", "forward_gelu", "bfloat16", 64, 64, 3, 1).
# Measured by pytest benchmarks/test_convolutions.py --benchmark-only --full --device cuda
FASTER = {}


def own_runs(backend, kind, x, shape, stride, activation):
    """Tell whether a backend's own kernel runs a map of a convolution that it takes.

    Args:
        backend: "triton" or "cuda".
        kind: CONV_FORWARD, CONV_INPUT or CONV_WEIGHT.
        x: any tensor on the device and of the dtype of the convolution.
        shape: [B, I, H, W] of its images and [O, I, k, k] of its filters, as a pair.
        stride: 1 or more.
        activation: whether GELU follows, or its derivative a gradient by the input.
    """
    if CHOICE != "measured":
        return CHOICE == "own"
    faster = FASTER.get(torch.cuda.get_device_name(x.device), {}) if FASTER and x.is_cuda else {}
    (batch, inputs, height, width), (outputs, _, size, _) = shape
    name = MAPS[kind] + ("_gelu" if activation else "")
    least = faster.get((backend, name, str(x.dtype).removeprefix("torch."), inputs, outputs, size, stride))
    return least is not None and batch * -(-height // stride) * -(-width // stride) >= least


def chosen(backend):
    """Say in words which convolutions run on a GPU with a backend."""
    if CHOICE == "own":
        return "our own where there are kernels, as CDN_GPU_CONVOLUTIONS says"
    if CHOICE == "torch":
        return "those of torch, as CDN_GPU_CONVOLUTIONS says"
    measured = FASTER.get(torch.cuda.get_device_name(), {}) if torch.cuda.is_available() else {}
    cases = sum(key[0] == backend for key in measured)
    if cases:
        return f"our own in {cases} cases that were measured to be faster here, else those of torch"
    return "those of torch; our own were not measured on this device (CDN_GPU_CONVOLUTIONS=own runs them)"
