"""Images of letters, as small as handwritten digits: outliers for a classifier of digits."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Without I and O, which are digits in some handwriting.
ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZ"
# They come with matplotlib, so letters are the same on every machine.
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSans-Oblique")
DRAWN = 96  # height in pixels of the drawing that is reduced
WIDEST = 0.75  # part of the width that a letter may fill, as digits do
SLANT = 0.25  # largest shift of the top against the middle, in heights


def letters(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw capital letters, bright on dark, in a font, a slant and a place of their own.

    Args:
        shape: (N, C, H, W) of the images; a letter is as high as they are, and narrower.
        generator: a :class:`torch.Generator` on the CPU.

    Returns:
        float32 [N, C, H, W] in [0, 1], the channels equal.
    """
    count, channels, height, width = shape
    fonts = [
        ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")), DRAWN)
        for name in FONTS
    ]
    images = np.zeros((count, height, width), np.float32)
    widest = math.ceil(WIDEST * width)
    choices = torch.randint(len(ALPHABET) * len(fonts), (count,), generator=generator).tolist()
    slants, places = torch.rand(2, count, generator=generator).tolist()
    for image, choice, slant, place in zip(images, choices, slants, places):
        letter, font = divmod(choice, len(fonts))
        glyph = _draw(ALPHABET[letter], fonts[font], (2 * slant - 1) * SLANT)
        glyph = glyph.resize(
            (max(1, min(widest, round(height * glyph.width / glyph.height))), height), Image.Resampling.BOX
        )
        left = round(place * (width - glyph.width))
        image[:, left : left + glyph.width] = np.asarray(glyph, np.float32) / 255
    return torch.from_numpy(images)[:, None].repeat(1, channels, 1, 1)


def _draw(letter: str, font: ImageFont.FreeTypeFont, slant: float) -> Image.Image:
    """Return a grey image that a slanted letter fills."""
    canvas = Image.new("L", (3 * DRAWN, 2 * DRAWN))
    middle = (1.5 * DRAWN, DRAWN)
    ImageDraw.Draw(canvas).text(middle, letter, fill=255, font=font, anchor="mm")
    canvas = canvas.transform(
        canvas.size, Image.Transform.AFFINE, (1, 2 * slant, -2 * slant * DRAWN, 0, 1, 0), Image.Resampling.BILINEAR
    )
    return canvas.crop(canvas.getbbox())
