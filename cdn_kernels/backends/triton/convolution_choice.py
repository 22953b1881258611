"""Which convolutions run in our own kernels, and which in those of torch with a pass after them.

The environment variable CDN_TRITON_CONVOLUTIONS decides: "measured", the default, takes our own where the table says
that they are faster on a device, "own" takes them everywhere, and "torch" nowhere.
"""
import os

import torch

CHOICE = os.environ.get("CDN_TRITON_CONVOLUTIONS", "measured")
MAPS = ("forward", "input", "weight")  # by the numbers of ../interface.py
# {name of a device: {(map, dtype, inputs, outputs, size of the filters, stride): pixels of y in a batch, at least}},
# where the map is one of MAPS, "forward_gelu" or "input_gelu", as in ("forward_gelu", "bfloat16", 64, 64, 3, 1).
# Measured by pytest benchmarks/test_convolutions.py --benchmark-only --full --device cuda
FASTER = {}

LARGEST_TILE = 128  # pixels


def conv2d_is_faster(kind, x, shape, stride, activation):
    """Tell whether our own kernels run a map of a convolution.

    Args:
        kind: CONV_FORWARD, CONV_INPUT or CONV_WEIGHT.
        x: any tensor on the device and of the dtype of the convolution.
        shape: [B, I, H, W] of its images and [O, I, k, k] of its filters, as a pair.
        activation: whether GELU follows, or its derivative a gradient by the input.
    """
    if CHOICE == "torch" or too_large(shape, stride):
        return False
    if CHOICE == "own":
        return True
    faster = FASTER.get(torch.cuda.get_device_name(x.device), {}) if FASTER and x.is_cuda else {}
    (batch, inputs, height, width), (outputs, _, size, _) = shape
    name = MAPS[kind] + ("_gelu" if activation else "")
    least = faster.get((name, str(x.dtype).removeprefix("torch."), inputs, outputs, size, stride))
    return least is not None and batch * -(-height // stride) * -(-width // stride) >= least


def too_large(shape, stride):
    """Return None if our own kernels can count the elements of a convolution in 32 bits, or what they cannot.

    These are the pixels of a batch, the elements of the filters, and those of the images that a tile touches; a batch
    may have more elements.
    """
    (batch, inputs, height, width), (outputs, _, size, _) = shape
    pixels = -(-height // stride) * -(-width // stride)
    touched = (LARGEST_TILE // max(pixels, 1) + 2) * max(inputs * height * width, outputs * pixels)
    for what, count, limit in (("pixels", batch * pixels, 1 << 30),
                               ("elements of the filters", outputs * inputs * size**2, 1 << 31),
                               ("elements of the images of a tile", touched, 1 << 31)):
        if count >= limit:
            return f"{limit} {what} or more, got {count}"
    return None


def chosen():
    """Say in words which convolutions run here."""
    if CHOICE == "own":
        return "our own, as CDN_TRITON_CONVOLUTIONS says"
    if CHOICE == "torch":
        return "those of torch, as CDN_TRITON_CONVOLUTIONS says"
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if name in FASTER:
        return f"our own in {len(FASTER[name])} cases that were measured to be faster here, else those of torch"
    return "those of torch; our own were not measured on this device (CDN_TRITON_CONVOLUTIONS=own runs them)"
