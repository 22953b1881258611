"""Read image files into what a model takes, and write images back."""

from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cdn.data.formats import FORMATS, SUFFIXES
from cdn.errors import CDNError, DataError
from cdn.finite import require_finite
from cdn.store import write_atomically

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
MODES = {1: "L", 3: "RGB"}


def find_images(folder: str | Path) -> list[Path]:
    """Return the image files of a folder, sorted by name, without hidden ones.

    Raises:
        DataError: no folder, or none in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images, found none")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise DataError(f"{folder}: expected image files ({', '.join(SUFFIXES)}), found none")
    return paths


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
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # decoders fail in every way there is, and the file is always to blame
        cause = " ".join(str(error).split())
        raise DataError(f"{path}: expected a readable image, got {type(error).__name__}: {cause}") from None
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path}: expected 8 bits per channel, got more (Pillow mode {image.mode})")
    if "A" in image.getbands() or "transparency" in image.info:
        lowest, _ = cast("tuple[int, int]", image.convert("RGBA").getchannel("A").getextrema())
        if lowest < 255:
            raise DataError(f"{path}: expected an opaque image, got transparent pixels; flatten it first")
    grey = image.mode in ("1", "L", "LA", "La")
    note = None
    if grey and channels == 3:
        note = f"{path} is grey: repeated in 3 channels, as the model takes colour"
    elif not grey and channels == 1:
        note = f"{path} is in colour: converted to grey, as the model takes 1 channel"
    image = image.convert("RGB").convert(MODES[channels])
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, channels)
    return pixels.permute(2, 0, 1)[None].float().div(255), note


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
    if path.is_dir():
        raise CDNError(f"{path}: expected a file to write, got a folder")
    if not path.absolute().parent.is_dir():
        raise CDNError(f"{path}: its folder does not exist")
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise CDNError(f"{path}: output and input are the same file, expected another name for the output")


def write_image(path: str | Path, image: Tensor) -> None:
    """Clip an image to [0, 1], round it to 8 bits and write it atomically.

    Args:
        path: its suffix picks the format; JPEG loses a little, all others keep every value.
        image: [1, C, H, W], C = 1 or 3.

    Raises:
        NotFiniteError: values that are not finite, which would be written as black.
    """
    require_finite(image, f"{path}: not written, as values of the image are nan or infinite")
    pixels = image[0].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    kind, options = WRITABLE[Path(path).suffix.lower()]
    data = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(data, kind, **options)
    write_atomically(path, data.getvalue())
