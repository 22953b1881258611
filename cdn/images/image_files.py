"""Read image files into what a model takes, and write images back."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cdn.errors import CDNError, DataError
from cdn.files import require_writable, write_atomically
from cdn.images.decoder import MODES, SUFFIXES, as_tensor, central_square, decode
from cdn.images.listing import list_folder, say_skipped
from cdn.model.finite import require_finite

# Pillow's name of the format that a suffix stands for, and how it is written.
WRITABLE: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
}


def find_images(folder: str | Path) -> list[Path]:
    """Return the image files of a folder, sorted by name; a warning says how much in it is no image.

    Raises:
        DataError: no folder, or none in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images, found none")
    found = list_folder(folder)
    if not found.images:
        raise DataError(f"{folder}: expected image files ({', '.join(SUFFIXES)}), found none")
    say_skipped(folder, found.strays, found.folders)
    return found.images


def read_image(path: str | Path, channels: int, size: int | None = None) -> tuple[Tensor, str | None]:
    """Decode an image file, upright, as grey or colour.

    Args:
        path: a PNG, JPEG, WebP, BMP, TIFF or PPM file; of several frames the first is read.
        channels: 1 converts colour to grey (ITU-R 601 luma), 3 repeats grey.
        size: None, or the side of a square: the central square of the image is cut out and resized (bicubic).

    Returns:
        (image, note): float32 [1, channels, H, W] in [0, 1], and a sentence that says what was converted, or
        None.

    Raises:
        DataError: the file cannot be decoded, has more than 8 bits per channel or transparent pixels.
        CDNError: channels is neither 1 nor 3.
    """
    if channels not in MODES:
        raise CDNError(f"image files have 1 or 3 channels, but the model takes {channels}")
    decoded = decode(path, at_least=size)
    note = None
    if decoded.grey and channels == 3:
        note = f"{path} is grey: repeated in 3 channels, as the model takes colour"
    elif not decoded.grey and channels == 1:
        note = f"{path} is in colour: converted to grey, as the model takes 1 channel"
    elif decoded.mode == "CMYK":
        note = f"{path} is CMYK: converted to RGB, without regard to a colour profile"
    image = decoded.image.convert(MODES[channels])
    if size is not None:
        image = central_square(image, size)
    return as_tensor(image, channels)[None].float().div(255), note


def check_writable(path: str | Path, source: str | Path) -> None:
    """Raise CDNError, before any work is done, if an image cannot be written to a path.

    Args:
        path: where the image is to go.
        source: the file it is made from, which is never overwritten.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITABLE:
        raise CDNError(
            f"{path}: expected an output ending in {', '.join(WRITABLE)}, got {path.suffix or 'no suffix'!r}"
        )
    require_writable(path)
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise CDNError(f"{path}: output and input are the same file, expected another name for the output")


def kind_of(path: str | Path) -> str:
    """Return Pillow's name of the format that the suffix of a writable path stands for."""
    return WRITABLE[Path(path).suffix.lower()][0]


def write_image(path: str | Path, image: Tensor, metadata: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Clip an image to [0, 1], round it to 8 bits and write it atomically.

    Args:
        path: its suffix picks the format; JPEG loses a little, all others keep every value.
        image: [1, C, H, W], C = 1 or 3.
        metadata: further options of Pillow's ``save``, such as :func:`cdn.images.metadata.carry_over` finds.

    Raises:
        NotFiniteError: values that are not finite, which would be written as black.
    """
    require_finite(image, f"{path}: not written, as values of the image are nan or infinite")
    pixels = image[0].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    kind, options = WRITABLE[Path(path).suffix.lower()]
    data = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(data, kind, **options, **metadata)
    write_atomically(path, data.getvalue())
