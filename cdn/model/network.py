"""The base class of all networks of this package."""

from typing import Any

from torch import Tensor, nn


class Network(nn.Module):
    """A module on images [B, C, H, W] that knows how to build it again.

    Attributes:
        config: options that :func:`cdn.model.build` makes the same network of, with fresh weights; JSON can hold them.
        classes: names of the classes; set by :func:`cdn.load` alone.
        objective: what a loaded model was trained on, as in the settings of its run; None where nobody said, and after
            training it on something else, set it to None.
        images_alone: that it computes every image for itself; see
            :func:`cdn.model.capabilities.treats_images_alone`.
        mean: what is subtracted from the images, float32 [1, C, 1, 1].
    """

    config: dict[str, Any]
    classes: tuple[str, ...]
    objective: str | None = None
    images_alone: bool = True
    mean: Tensor
