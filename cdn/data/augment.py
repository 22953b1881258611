"""Random translation and mirroring, which move pixels and never blend them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cdn.errors import DataError
from cdn.noise_keys import AUGMENTATION


class Augmentation:
    """Crop each image at random from its reflect-padded self and mirror it half of the time.

    Every output pixel is an input pixel. What is drawn is apart from what is done with it, so that the draws can be
    made ahead, on the CPU, and the pixels moved on any device.

    Args:
        shape: (C, H, W) of the images.
        crop_padding: pixels of reflection around the image, at most min(H, W) - 1.
        flip: mirror left and right with probability 1/2.
        crop_size: side of the square crop, at most min(H, W); the image's own size if left out.

    Raises:
        DataError: a padding or crop that the image is too small for.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, crop_padding: int = 0, flip: bool = False, crop_size: int | None = None
    ) -> None:
        _, height, width = shape
        shorter = min(height, width)
        if not 0 <= crop_padding < shorter:
            raise DataError(
                f"crop_padding: a {height}x{width} image reflects 0..{shorter - 1} pixels, got {crop_padding}"
            )
        if crop_size is not None and not 1 <= crop_size <= shorter:
            raise DataError(f"crop_size: expected 1..{shorter} for a {height}x{width} image, got {crop_size}")
        self.sides, self.crops = (height, width), (crop_size or height, crop_size or width)
        self.padding, self.flip = crop_padding, flip

    def draw(self, batch: int, seed: int, step: int) -> Tensor:
        """Draw where the crops of a batch begin and which of them are mirrored.

        The draws depend on nothing but the arguments and the range of the crop; turning `flip` on leaves the crops as
        they were.

        Args:
            batch: number of images.
            seed, step: name the draw; neither negative.

        Returns:
            int64 [3, batch]: rows and columns in the padded image, and 1 for images to mirror.
        """
        generator = AUGMENTATION.generator(seed, step)
        starts = [
            torch.randint(side + 2 * self.padding - crop + 1, (batch,), generator=generator)
            for side, crop in zip(self.sides, self.crops)
        ]
        mirrored = torch.rand(batch, generator=generator) < 0.5 if self.flip else torch.zeros(batch)
        return torch.stack([*starts, mirrored.long()])

    def apply(self, images: Tensor, draws: Tensor | Sequence[Tensor]) -> Tensor:
        """Move the pixels of images as it was drawn.

        Args:
            images: uint8 [B, C, H, W] on any device.
            draws: int64 [3, B], of :meth:`draw`, on the same device; or its three rows.

        Returns:
            uint8 [B, C, crop_size, crop_size], or [B, C, H, W]; `images` itself when nothing was asked for.
        """
        if not self.padding and not self.flip and self.crops == self.sides:
            return images
        tops, lefts, mirrored = draws
        rows, columns = (
            _positions(start, side, crop, self.padding)
            for start, side, crop in zip((tops, lefts), self.sides, self.crops)
        )
        columns = torch.where(mirrored[:, None] > 0, columns.flip(1), columns)
        channels = images.shape[1]
        cropped = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, self.sides[1]))
        return cropped.gather(3, columns[:, None, None, :].expand(-1, channels, self.crops[0], -1))


def _positions(start: Tensor, side: int, crop: int, padding: int) -> Tensor:
    """Return int64 [B, crop]: for each output position along an axis, the source position it shows."""
    positions = start[:, None] - padding + torch.arange(crop, device=start.device)
    # Reflection about pixel 0, then about pixel side - 1; neither edge pixel is repeated.
    last = side - 1
    return last - (last - positions.abs()).abs()
