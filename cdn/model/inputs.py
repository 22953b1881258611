"""Checks of what networks take: images and noise levels, in shape, range, units and precision."""

import warnings

import torch
from torch import Tensor

from cdn_kernels.noise import HIGHEST_LEVEL

HALF = (torch.float16, torch.bfloat16)


def check_floating(y: Tensor, name: str) -> None:
    """Raise ValueError unless images are floating-point numbers."""
    if not y.is_floating_point():
        raise ValueError(f"{name}: expected floating-point images in [0, 1], got {y.dtype}; divide 8-bit ones by 255")


def check_images(y: Tensor, channels: int, name: str, weight: Tensor, *, half: bool = True) -> None:
    """Raise ValueError unless y is a batch of float images [B, channels, H, W], one or more, of a pixel or more.

    Args:
        y: the images.
        channels: that the network takes.
        name: of the network.
        weight: one of its weights; images of fewer digits than it has are promoted, those of more are refused.
        half: whether weights in half precision are of use to the network.
    """
    if y.dim() != 4 or y.shape[1] != channels or 0 in y.shape:
        few = ", which hold none: give one or more" if 0 in y.shape else ""
        raise ValueError(f"{name}: expected images [B, {channels}, H, W], got {list(y.shape)}{few}")
    check_floating(y, name)
    if not half and weight.dtype in HALF:
        raise ValueError(
            f"{name}: weights in {weight.dtype} leave a log-density less than three digits; keep them in float32 and "
            "run the model under torch.autocast, with dtype=torch.bfloat16"
        )
    if torch.promote_types(y.dtype, weight.dtype) != weight.dtype:
        raise ValueError(f"{name}: expected images in the dtype of the weights, {weight.dtype}, got {y.dtype}")


def check_sigma(sigma: float) -> None:
    """Raise ValueError unless the level of noise that is added to images in [0, 1] is a number above 0.

    Warns:
        UserWarning: it is so high that grey levels must be meant.
    """
    if (isinstance(sigma, Tensor) and sigma.dim()) or not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be a number above 0, got {sigma}")
    if sigma > HIGHEST_LEVEL:
        warnings.warn(
            f"sigma = {float(sigma):g} leaves nothing of images in [0, 1], whose units it has: "
            f"{float(sigma):g} grey levels are {float(sigma):g} / 255",
            stacklevel=4,
        )


def check_counts(**counts: int) -> None:
    """Raise ValueError, which names the argument, unless all numbers of things are at least 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def sigma_text(sigma: float) -> str:
    """Return a noise level as everything prints it: 25/255 where it is a whole number of grey levels, else 0.1.

    Args:
        sigma: in the units of images in [0, 1].
    """
    grey = sigma_key(sigma)
    return f"{grey}/255" if grey.isdigit() else f"{sigma:.4g}"


def sigma_key(sigma: float) -> str:
    """Return a noise level as the keys of reports have it, in grey levels of 255: 25 for 25/255.

    Args:
        sigma: in the units of images in [0, 1].
    """
    return f"{round(255 * sigma, 6):g}"
