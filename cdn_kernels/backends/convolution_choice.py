"""Which convolutions run in our own kernels on a GPU, and which in those of torch with a pass after them.

The environment variable CDN_GPU_CONVOLUTIONS decides: "measured", the default, takes our own where measured.py
says that they are faster on a device, "own" takes them wherever a backend has a kernel, and "torch" nowhere.
"""

import os

import torch
from torch import Tensor

from cdn_kernels.backends import measured
from cdn_kernels.backends.interface import ConvolutionShape

CHOICE = os.environ.get("CDN_GPU_CONVOLUTIONS", "measured")


def own_runs(backend: str, kind: int, x: Tensor, shape: ConvolutionShape, stride: int, activation: bool) -> bool:
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
    return measured.convolution_is_faster(backend, kind, x, shape, stride, activation)


def chosen(backend: str) -> str:
    """Say in words which convolutions run on a GPU with a backend."""
    if CHOICE == "own":
        return "our own where there are kernels, as CDN_GPU_CONVOLUTIONS says"
    if CHOICE == "torch":
        return "those of torch, as CDN_GPU_CONVOLUTIONS says"
    found = measured.gpu(torch.device("cuda"))
    if not found:
        return "those of torch; our own were not measured on this device (CDN_GPU_CONVOLUTIONS=own runs them)"
    cases = sum(key.startswith(f"{backend} ") and measured.is_faster(row) for key, row in found["convolutions"].items())
    return f"our own in {cases} cases that were measured to be faster here, else those of torch"
