"""Kernels in Triton, for NVIDIA GPUs from compute capability 8.0 (sm_80), and for Triton's interpreter.

The kernels are in one file per operation, operations.py lists them, and none of that is imported before it is used.
With the environment variable TRITON_INTERPRET=1 they run on the CPU, slowly, to be tested without a GPU.

Tested by the interpreter and compiled for sm_80 and sm_90; not yet measured on a GPU. Limitations: kernels are compiled
once for every shape of a sample; a sample has less than 2**31 values, and the scale-preserving norm at most 4096
channels; convolutions are those of torch where our own have not been measured to be faster (convolution_choice.py).
float16 ends at 65504, and what is beyond becomes infinite, as in eager PyTorch: nothing is looked at, for that would
wait for the device.
"""

import importlib.util
import os

import torch

from cdn_kernels.backends.driver import why_no_gpu
from cdn_kernels.backends.interface import TYPES

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton reads it, when the kernels are defined
LEAST_CAPABILITY = 8  # Ampere: bfloat16 arithmetic


def can_use_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if this backend takes tensors of a device and dtype, or the reason why not."""
    if not INSTALLED:
        return "triton is not installed; the builds of torch for NVIDIA GPUs bring it, on Linux"
    if dtype not in TYPES:
        return f"the dtype must be float32, float64, bfloat16 or float16, got {dtype}"
    if INTERPRETED:
        return None if device.type == "cpu" else f"Triton's interpreter needs tensors of a CPU, got device {device}"
    if device.type != "cuda":
        return f"the tensor must be on a CUDA device, got device {device}"
    reason = why_no_gpu()
    if reason:
        return reason
    properties = torch.cuda.get_device_properties(device)
    if properties.major < LEAST_CAPABILITY:
        return (
            f"the GPU must have compute capability {LEAST_CAPABILITY}.0 or higher, got "
            f"{properties.major}.{properties.minor} ({properties.name})"
        )
    return None
