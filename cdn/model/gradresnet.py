"""GradResNet: a smooth, bias-free residual network whose input gradient is a useful score.

After Thiry & Guth, "Classification-Denoising Networks" (arXiv 2410.03505): GELU in place of ReLU, no biases, one group
normalization per block instead of batch normalization, and side connections from every stage to the head, which give
the input gradient the skip structure of a U-Net.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

import cdn_kernels
from cdn.model.head import Head
from cdn.model.inputs import check_images
from cdn.model.network import Network
from cdn_kernels.floors import square_floor

GROUP_SIZE = 8
NORMS = ("plain", "scale-preserving")
STEMS = ("cifar", "imagenet")

# What is subtracted from images: one value, or one per channel.
Mean = float | Sequence[float] | Tensor


class Filters(nn.Module):
    """Hold the weights of a bias-free square convolution with "same" padding.

    Args:
        inputs, outputs: channels.
        size: 1 or 3.
        stride: 1 or more.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, h: Tensor) -> Tensor:
        """Convolve [B, inputs, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        return cdn_kernels.conv2d(h, self.weight, self.stride)

    def gelu(self, h: Tensor) -> Tensor:
        """Convolve and apply GELU."""
        return cdn_kernels.conv2d_gelu(h, self.weight, self.stride)

    def gelu_of_parts(self, h: Tensor) -> Tensor:
        """Do the same under autocast with twice the digits of h: with its rounded values and what rounding lost."""
        dtype = torch.get_autocast_dtype(h.device.type)
        high = h.to(dtype)
        low = (h.detach() - high.detach()).to(dtype)  # a step function of h: high alone carries the derivatives
        return cdn_kernels.conv2d_gelu(torch.cat([high, low], 1), torch.cat([self.weight] * 2, 1), self.stride)


class Block(nn.Module):
    """Apply conv3x3 -> GELU -> conv3x3 -> add the shortcut -> GELU -> group normalization with a gain.

    Args:
        inputs, outputs: channels; outputs a multiple of the group size, 8.
        stride: of the first convolution and of the shortcut, which is a 1x1 convolution unless it can be the identity.
        norm: "plain" or "scale-preserving" (:func:`cdn_kernels.reference.gelu_group_norm`).
        eps: of the norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, eps: float) -> None:
        super().__init__()
        self.first = Filters(inputs, outputs, stride=stride)
        self.second = Filters(outputs, outputs)
        self.shortcut = Filters(inputs, outputs, size=1, stride=stride) if stride > 1 or inputs != outputs else None
        self.gain = nn.Parameter(torch.ones(outputs))
        self.scale_preserving = norm == "scale-preserving"
        self.eps = eps

    def forward(self, h: Tensor) -> Tensor:
        """Turn features [B, inputs, H, W] into [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        v = cdn_kernels.conv2d_gelu_conv2d(h, self.first.weight, self.second.weight, self.first.stride)
        shortcut = h if self.shortcut is None else self.shortcut(h)
        return cdn_kernels.gelu_group_norm(
            v,
            self.gain,
            len(self.gain) // GROUP_SIZE,
            residual=shortcut.to(v.dtype),
            eps=self.eps,
            scale_preserving=self.scale_preserving,
        )


class Trunk(nn.Module):
    """Compute the features of every stage.

    Args:
        in_channels: channels of the images.
        width: channels of the first stage, a multiple of 8; each further stage doubles them and halves the resolution.
        blocks: number of blocks of each stage.
        stem: "cifar" (one 3x3 convolution) or "imagenet" (two of stride 2).
        norm, eps: see :class:`Block`.
    """

    def __init__(self, in_channels: int, width: int, blocks: Sequence[int], stem: str, norm: str, eps: float) -> None:
        super().__init__()
        strides = (1,) if stem == "cifar" else (2, 2)
        self.stem = nn.ModuleList(
            Filters(in_channels if i == 0 else width, width, stride=stride) for i, stride in enumerate(strides)
        )
        self.recompute = False  # whether training keeps only what lies between blocks (cdn_kernels.recomputed)
        self.channels = [width << stage for stage in range(len(blocks))]
        self.stages = nn.ModuleList()
        inputs = width
        for stage, (outputs, count) in enumerate(zip(self.channels, blocks)):
            stride = 1 if stage == 0 else 2
            self.stages.append(
                nn.Sequential(
                    *(
                        Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1, norm, eps)
                        for i in range(count)
                    )
                )
            )
            inputs = outputs

    def forward(self, h: Tensor) -> list[Tensor]:
        """Return the features [B, C_l, H_l, W_l] of every stage for centred images [B, C, H, W]."""
        first, *others = cast("Iterable[Filters]", self.stem)
        # Rounding y to 8 bits of mantissa would bury noise of sigma = 0.01.
        h = first.gelu_of_parts(h) if torch.is_autocast_enabled(h.device.type) else first.gelu(h)
        for filters in others:
            h = filters.gelu(h)
        features = []
        for stage in self.stages:
            for block in cast("Iterable[nn.Module]", stage):
                h = cdn_kernels.recomputed(block, h) if self.recompute else block(h)
            features.append(h)
        return features


class GradResNet(Network):
    """Model ``f(y)_c = log p(y, c)`` up to a constant: logits whose logsumexp is a log-density of noisy images.

    ``model(y)`` is a plain forward; see :func:`cdn.score` and :func:`cdn.denoise` for its input gradient.

    Args:
        num_classes: number of logits C.
        in_channels: channels of the images.
        width: channels of the first stage, a multiple of 8.
        blocks: blocks per stage.
        stem: "cifar" or "imagenet".
        head: "log-energy", "quadratic" or "linear" (:class:`cdn.model.head.Head`).
        norm: "scale-preserving" or "plain".
        eps: of the norm (relative to the variance of the sample if scale-preserving).
        homogeneous: divide the centred input by its root mean square and put the factor back into the log-density,
            which makes the score exactly homogeneous: ``s(a y) = s(y) / a``.
        mean: what is subtracted from the images, one value or one per channel; images are in [0, 1].

    Input: images [B, in_channels, H, W], any H and W, in [0, 1] plus noise. Output: logits [B, C] in float32 (float64
    for float64 input).

    Raises:
        ValueError: an option out of range, or input of the wrong shape.
    """

    # The curve that cdn.estimate_sigma inverts: noise levels, and the mean square of the score at each. [25]
    calibration_sigma: Tensor
    calibration_mean_square: Tensor

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
        stem: str = "cifar",
        head: str = "log-energy",
        norm: str = "scale-preserving",
        eps: float = 1e-3,
        homogeneous: bool = False,
        mean: Mean = 0.5,
    ) -> None:
        super().__init__()
        if width < GROUP_SIZE or width % GROUP_SIZE:
            raise ValueError(f"GradResNet: width must be a positive multiple of {GROUP_SIZE}, got {width}")
        for name, value, choices in (("norm", norm, NORMS), ("stem", stem, STEMS)):
            if value not in choices:
                raise ValueError(f"GradResNet: {name} must be one of {', '.join(choices)}, got {value!r}")
        if homogeneous and head != "log-energy":
            raise ValueError("GradResNet: homogeneous=True needs head='log-energy'")
        self.config = dict(
            kind="gradresnet",
            num_classes=num_classes,
            in_channels=in_channels,
            width=width,
            blocks=list(blocks),
            stem=stem,
            head=head,
            norm=norm,
            eps=eps,
            homogeneous=homogeneous,
        )
        self.homogeneous = homogeneous
        self.register_buffer("mean", per_channel(mean, in_channels))
        levels = torch.logspace(-2.5, 0.5, 25)
        self.register_buffer("calibration_sigma", levels)
        self.register_buffer("calibration_mean_square", levels**-2)
        self.trunk = Trunk(in_channels, width, blocks, stem, norm, eps)
        self.head = Head(self.trunk.channels, num_classes, head)

    def forward(self, y: Tensor) -> Tensor:
        """Return the logits [B, num_classes] of images [B, in_channels, H, W]."""
        check_images(y, self.config["in_channels"], "GradResNet", self.head.classes.weight, half=False)
        h = y - self.mean
        log_scale: float | Tensor = 0.0
        if self.homogeneous:
            mean_square = h.square().mean((1, 2, 3))
            mean_square = torch.where(mean_square > square_floor(h.dtype), mean_square, 1.0)
            h = h * mean_square.rsqrt().view(-1, 1, 1, 1)
            log_scale = mean_square.log()
        return self.head(self.trunk(h), y[0].numel(), log_scale)


def per_channel(value: Mean, channels: int) -> Tensor:
    """Return one value, or one per channel, as [1, channels, 1, 1] in the default dtype, which weights have too."""
    return torch.as_tensor(value, dtype=torch.get_default_dtype()).expand(channels).clone().view(1, -1, 1, 1)


def gradresnet18(num_classes: int = 10, in_channels: int = 3, **options: Any) -> GradResNet:
    """Build the 18-layer :class:`GradResNet` (two blocks in each of four stages)."""
    return GradResNet(num_classes, in_channels, blocks=(2, 2, 2, 2), **options)


def gradresnet34(num_classes: int = 10, in_channels: int = 3, **options: Any) -> GradResNet:
    """Build the 34-layer :class:`GradResNet` (3, 4, 6 and 3 blocks)."""
    return GradResNet(num_classes, in_channels, blocks=(3, 4, 6, 3), **options)


def gradresnet_small(num_classes: int = 10, in_channels: int = 3, **options: Any) -> GradResNet:
    """Build a 9-layer :class:`GradResNet` for tiny images (two blocks in each of two stages)."""
    return GradResNet(num_classes, in_channels, blocks=(2, 2), **options)
