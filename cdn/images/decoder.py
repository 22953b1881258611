"""The decoder of image files: upright, opaque, 8 bits per channel, or an error."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cdn.errors import DataError

# What Pillow logs of a damaged file is in its exception too.
logging.getLogger("PIL").addHandler(logging.NullHandler())

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# Pillow's names of the formats of these suffixes. Else the content of a file would choose the decoder, whatever its
# suffix: that of EPS runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB"}
GREY = ("1", "L", "LA")
ORIENTATION = 0x0112
BITS_PER_SAMPLE = 258  # a tag of TIFF


class Decoded(NamedTuple):
    """What :func:`decode` returns.

    Attributes:
        image: a Pillow image of mode "L", where the file has no colour, or "RGB".
        mode: Pillow's name of the mode that the file has.
    """

    image: Image.Image
    mode: str

    @property
    def grey(self) -> bool:
        """Whether the file has no colour."""
        return self.image.mode == "L"


@contextmanager
def opened(path: str | Path | IO[bytes], formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong with it meanwhile is a DataError of one line that names it.

    Args:
        path: the file, or its content.
        formats: Pillow's names of the formats that it may have.
    """
    try:
        with Image.open(path, formats=formats) as image:
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected a readable image ({', '.join(formats)}), found none") from None
    except MemoryError:
        raise DataError(f"{path}: there is not enough memory to decode it") from None
    except Exception as error:  # decoders fail in every way there is, and the file is always to blame
        cause = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DataError(f"{path}: expected a readable image, got {type(error).__name__}: {cause}") from None


def decode(
    path: str | Path | IO[bytes],
    formats: tuple[str, ...] = FORMATS,
    *,
    at_least: int | Callable[[int, int], int] | None = None,
) -> Decoded:
    """Decode the first frame of an image file, turned upright as its EXIF data says.

    Palettes and CMYK, YCbCr or Lab colours become RGB, black and white becomes grey, and an alpha channel that is
    opaque everywhere is left out.

    Args:
        path: the file, or its content.
        formats: Pillow's names of the formats that it may have.
        at_least: sides of so many pixels are enough: a JPEG image of twice, four or eight times as many is decoded at a
            half, a quarter or an eighth of its sides, by as many of its frequencies, in a fraction of the time. Or a
            function of the width and the height of the file, before it is turned upright.

    Raises:
        DataError: the file cannot be decoded, is cut short, far too large, has more than 8 bits per channel, or pixels
            that are not opaque.
    """
    with opened(path, formats) as image:
        # Before the pixels are read, which makes 8-bit images of most deeper ones.
        bits = _bits(image)
        if bits > 8:
            raise DataError(f"{path}: expected 8 bits per channel, got {bits}; convert it first")
        mode = image.mode
        if at_least is not None:
            side = at_least(*image.size) if callable(at_least) else at_least
            image.draft(None, (side, side))  # other formats ignore it
        image.load()
        _turn_upright(image)
        if 0 in image.size:
            raise ValueError("no pixels")
        upright: Image.Image = image
        if "A" in mode or "transparency" in image.info:
            if mode == "1" and "transparency" in image.info:
                # The file says 0 or 1, and so do older versions of Pillow; white is 255 where it is compared.
                image.info["transparency"] = 255 * bool(image.info["transparency"])
            upright = image.convert("RGBA")
            if upright.getchannel("A").getextrema() != (255, 255):
                raise DataError(f"{path}: expected an opaque image, got transparent pixels; flatten it first")
        return Decoded(upright.convert("L" if mode in GREY else "RGB"), mode)


def central_square(image: Image.Image, size: int) -> Image.Image:
    """Cut out the central square of an image and resize it (bicubic)."""
    shorter = min(image.size)
    left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
    # The square is cut before it is resized: the same view, and a thin strip cannot grow huge.
    return resized(image, (left, top, left + shorter, top + shorter), (size, size))


def resized(image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    """Resize a part of an image (bicubic).

    Args:
        image: the image.
        box: left, upper, right and lower border of the part.
        size: width and height to have.
    """
    return image.crop(box).resize(size, Image.Resampling.BICUBIC)


def as_tensor(image: Image.Image, channels: int) -> Tensor:
    """Return a decoded image as uint8 [channels, H, W].

    Args:
        image: of mode "L" or "RGB".
        channels: 1 converts colour to grey (ITU-R 601 luma), 3 repeats grey.
    """
    pixels = torch.from_numpy(np.array(image.convert(MODES[channels])))
    return pixels.view(image.height, image.width, channels).permute(2, 0, 1)


def _bits(image: Image.Image) -> int:
    """Return the bits per channel of an image that has been opened and not yet decoded."""
    if image.mode.startswith("I;16"):
        return 16
    if image.mode in ("I", "F"):
        return 32
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (1,)))
    # What Pillow is about to decode: the name of a raw mode, such as RGB;16B of a PNG file, or, of a PPM file, the name
    # and the highest value.
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    if image.format == "PPM":
        return max((int(args[1]).bit_length() for args in arguments if isinstance(args, tuple)), default=8)
    if image.format == "PNG":
        return max((16 for args in arguments if str(args).endswith(";16B")), default=8)
    return 8


def _turn_upright(image: Image.Image) -> None:
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # damaged EXIF data does not say which side is up, and harms no pixel
        return
    if orientation is not None:
        ImageOps.exif_transpose(image, in_place=True)
