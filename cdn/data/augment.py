"""Random translation and mirroring, which move pixels and never blend them."""

import torch
from torch import Tensor

from cdn.data.generator import keyed_generator
from cdn.errors import DataError


def augment(images: Tensor, seed: int, step: int, *, crop_padding: int = 0, flip: bool = False,
            crop_size: int | None = None) -> Tensor:
    """Crop each image at random from its reflect-padded self and mirror it half of the time.

    Every output pixel is an input pixel. The draws depend on nothing but `seed`, `step`, the batch size and
    the range of the crop; turning `flip` on leaves the crops as they were.

    Args:
        images: uint8 [B, C, H, W] on any device.
        seed, step: name the draw; neither negative.
        crop_padding: pixels of reflection around the image, at most min(H, W) - 1.
        flip: mirror left and right with probability 1/2.
        crop_size: side of the square crop, at most min(H, W); the image's own size if left out.

    Returns:
        uint8 [B, C, crop_size, crop_size], or [B, C, H, W]; `images` itself when nothing was asked for.

    Raises:
        DataError: images of another type, or a padding or crop that the image is too small for.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(f"images: expected uint8 [B, C, H, W], got {images.dtype} {list(images.shape)}")
    batch, channels, height, width = images.shape
    shorter = min(height, width)
    if not 0 <= crop_padding < shorter:
        raise DataError(f"crop_padding: a {height}x{width} image reflects 0..{shorter - 1} pixels, "
                        f"got {crop_padding}")
    if crop_size is not None and not 1 <= crop_size <= shorter:
        raise DataError(f"crop_size: expected 1..{shorter} for a {height}x{width} image, got {crop_size}")
    if not crop_padding and not flip and crop_size is None:
        return images

    generator = keyed_generator("augment", seed, step)
    rows = _crop_positions(batch, height, crop_size or height, crop_padding, generator)
    columns = _crop_positions(batch, width, crop_size or width, crop_padding, generator)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    cropped = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    return cropped.gather(3, columns[:, None, None, :].expand(-1, channels, cropped.shape[2], -1))


def _crop_positions(batch: int, side: int, crop: int, padding: int, generator: torch.Generator) -> Tensor:
    """Return int64 [batch, crop]: for each output position along an axis, the source position it shows."""
    offsets = torch.randint(side + 2 * padding - crop + 1, (batch, 1), generator=generator)
    positions = offsets - padding + torch.arange(crop)
    # Reflection about pixel 0, then about pixel side - 1; neither edge pixel is repeated.
    last = side - 1
    return last - (last - positions.abs()).abs()
