"""Which convolutions the kernels take, and which of these they run."""

from torch import Tensor

from cdn_kernels.backends.convolution_choice import own_runs
from cdn_kernels.backends.interface import ConvolutionShape

LARGEST_TILE = 128  # pixels


def conv2d_is_faster(kind: int, x: Tensor, shape: ConvolutionShape, stride: int, activation: bool) -> bool:
    """Tell whether our own kernels run a map of a convolution; arguments as for :func:`own_runs`."""
    return not too_large(shape, stride) and own_runs("triton", kind, x, shape, stride, activation)


def too_large(shape: ConvolutionShape, stride: int) -> str | None:
    """Return None if our own kernels can count the elements of a convolution in 32 bits, or what they cannot.

    These are the pixels of a batch, the elements of the filters, and those of the images that a tile touches; a batch
    may have more elements.
    """
    (batch, inputs, height, width), (outputs, _, size, _) = shape
    pixels = -(-height // stride) * -(-width // stride)
    touched = (LARGEST_TILE // max(pixels, 1) + 2) * max(inputs * height * width, outputs * pixels)
    for what, count, limit in (
        ("pixels", batch * pixels, 1 << 30),
        ("elements of the filters", outputs * inputs * size**2, 1 << 31),
        ("elements of the images of a tile", touched, 1 << 31),
    ):
        if count >= limit:
            return f"{limit} {what} or more, got {count}"
    return None
