"""Run a kernel on the device of its tensors, and the sizes that suit it."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def launch(
    kernel: triton.KernelInterface,
    programs: tuple[int, ...],
    *arguments: Any,
    num_warps: int = 4,
    num_stages: int = 3,
    **constants: Any,
) -> None:
    """Run a kernel once for every program of a grid; the first argument is a tensor.

    Nothing waits for the device, no kernel uses atomics, and no configuration is searched for: the same input gives the
    same bits.
    """
    if 0 in programs:
        return
    with torch.cuda.device_of(arguments[0]):
        kernel[programs](*arguments, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=False, **constants)


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is n or more."""
    return triton.next_power_of_2(n)


def check_sample(size: int) -> None:
    """Raise ValueError unless the elements of one sample can be counted in 32 bits; a batch may have more."""
    if size >= 1 << 31:
        raise ValueError(f"the triton kernels take samples of less than 2**31 values, got {size}")


def computing_type(x: Tensor) -> tl.dtype:
    """Return the type of Triton that arithmetic with the elements of a tensor is done in."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32
