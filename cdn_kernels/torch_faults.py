"""Faults of torch that end a process, and when they may: callers take another way to the same numbers."""

from collections.abc import Sequence


def strided_gradient_may_crash(shape: tuple[Sequence[int], Sequence[int]], stride: int) -> bool:
    """Tell whether torch may end the process at the gradient by the filters, which are 1x1 with stride, on a CPU.

    oneDNN, which torch 2.13 calls, does with AVX-512 for some images of few channels: in bfloat16, and in float32 where
    threads share a batch unevenly.

    Args:
        shape: of the images [B, I, H, W] and of the filters [O, I, k, k].
        stride: of the convolution.
    """
    _, (_, inputs, *sides) = shape
    return stride > 1 and inputs < 16 and sides == [1, 1]
