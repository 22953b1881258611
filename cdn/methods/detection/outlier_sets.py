"""Sets of outliers: noise, distortions of real images, and images of other folders."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cdn.errors import DataError
from cdn.images.image_files import find_images, read_image
from cdn.methods.detection.letters import letters
from cdn.noise_keys import OUTLIERS

BLOCKS = 4  # to a side, where an image has as many pixels


def synthetic_outliers(images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Make sets of outliers, each as large as a set of images, and most of them out of those.

    Args:
        images: [N, C, H, W] in [0, 1], on any device.
        seed: of what is drawn at random.

    Returns:
        A dict from names to images [N, C, H, W] in [0, 1], on the device of the images. All are rounded to 8 bits as
        real images are, so that no detector can go by that. "letters" are made for images without color only.

        "mirrored" is a control: photographs remain photographs, so that nothing should tell them apart.
    """
    generator = OUTLIERS.generator(seed)
    uniform = torch.rand(images.shape, generator=generator)
    sets = {
        "Gaussian noise": 0.5 + 0.25 * torch.randn(images.shape, generator=generator),
        "uniform noise": uniform,
        "constant": uniform[:, :, :1, :1].expand(images.shape),
        "interpolated": (images + images.roll(1, 0)) / 2,
        "inverted": 1 - images,
        "quarter turn": images.rot90(1, (2, 3)) if images.shape[2] == images.shape[3] else images.flip((2, 3)),
        "upside down": images.flip(2),
        "mirrored": images.flip(3),
        "shuffled blocks": shuffle_blocks(images, min(BLOCKS, *images.shape[2:]), generator),
        "shuffled pixels": _shuffle(images.flatten(2), generator).view_as(images),
    }
    if images.shape[1] == 1:
        sets["letters"] = letters(images.shape, generator)
    return {name: value.to(images.device).clamp(0, 1).mul(255).round().div(255) for name, value in sets.items()}


def shuffle_blocks(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Cut images into count x count blocks and put those, in a random order for each image, together again.

    Rows and columns that do not fill a block stay where they are.

    Args:
        images: [N, C, H, W], H and W at least ``count``.
        count: blocks to a side.
        generator: a :class:`torch.Generator` on the CPU.

    Raises:
        ValueError: images smaller than that.
    """
    n, channels = images.shape[:2]
    height, width = (size // count for size in images.shape[2:])
    if not height or not width:
        raise ValueError(
            f"shuffle_blocks: expected images of at least {count} x {count} pixels, "
            f"got {images.shape[2]} x {images.shape[3]}"
        )
    shuffled = images.clone()
    part = shuffled[:, :, : count * height, : count * width]
    grid = part.reshape(n, channels, count, height, count, width)
    blocks = grid.permute(0, 1, 3, 5, 2, 4).reshape(n, -1, count * count)
    blocks = _shuffle(blocks, generator).view(n, channels, height, width, count, count)
    part.copy_(blocks.permute(0, 1, 4, 2, 5, 3).reshape(part.shape))
    return shuffled


def read_outliers(folder: str | Path, shape: Sequence[int], limit: int) -> Tensor:
    """Read images from a folder, in the order of their names.

    Args:
        folder: of image files, directly in it. A file as wide as the images and a whole number of times as high, at
            least two, is a strip: images stacked on top of each other. Of every other file the central square is
            resized.
        shape: (C, S, S) of the images to return; C = 1 converts colour to grey.
        limit: how many images to read at most.

    Returns:
        float32 [N, C, S, S] in [0, 1].

    Raises:
        DataError: no such folder, no images in it, or one that cannot be decoded.
    """
    channels, size, width = shape
    if size != width:
        raise DataError(f"{folder}: outliers from files need square images, got {size} x {width}")
    found, total = [], 0
    for file in find_images(folder):
        image, _ = read_image(file, channels)
        _, _, height, width = image.shape
        if width == size and height > size and height % size == 0:
            images = image.view(channels, -1, size, size).transpose(0, 1)
        else:
            images = read_image(file, channels, size)[0]
        found.append(images)
        total += len(images)
        if total >= limit:
            break
    return torch.cat(found)[:limit]


def _shuffle(values: Tensor, generator: torch.Generator) -> Tensor:
    """Put the last dimension of values [N, K, M] into an order of its own for each of the N."""
    order = torch.rand(len(values), values.shape[2], generator=generator).argsort(1).to(values.device)
    return values.gather(2, order[:, None].expand_as(values))


def read_outlier_sets(
    given: Iterable[tuple[str, str]], taken: Collection[str], shape: tuple[int, int, int], limit: int
) -> dict[str, Tensor]:
    """Return the images of several folders by name.

    Args:
        given: names and folders.
        taken: names of other sets.
        shape, limit: as for :func:`read_outliers`.

    Raises:
        DataError: a name that is taken, or a set that cannot be read.
    """
    sets: dict[str, Tensor] = {}
    for name, folder in given:
        if name in (*taken, *sets):
            raise DataError(f"--outliers {name}={folder}: expected a name of its own, as {name!r} is taken")
        sets[name] = read_outliers(folder, shape, limit)
    return sets
