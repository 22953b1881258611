"""Baselines of like size: a classifier that cannot denoise and a denoiser that cannot classify."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdn.model.gradresnet import Filters, Mean, Trunk, per_channel
from cdn.model.inputs import check_images
from cdn.model.network import Network


class ResNet(Network):
    """Classify with the usual residual network (He et al. 2016): BatchNorm, ReLU, CIFAR or ImageNet stem.

    Args and input as :class:`cdn.model.gradresnet.GradResNet`, without the options of head and norm.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
        stem: str = "cifar",
        mean: Mean = 0.5,
    ) -> None:
        super().__init__()
        self.config = dict(
            kind="resnet", num_classes=num_classes, in_channels=in_channels, width=width, blocks=list(blocks), stem=stem
        )
        self.register_buffer("mean", per_channel(mean, in_channels))
        layers: list[nn.Module] = [_conv(in_channels, width, 3, 1 if stem == "cifar" else 2), nn.ReLU()]
        if stem == "imagenet":
            layers += [_conv(width, width, 3, 2), nn.ReLU()]
        inputs = width
        for stage, count in enumerate(blocks):
            for i in range(count):
                layers.append(_ResidualBlock(inputs, width << stage, 2 if stage > 0 and i == 0 else 1))
                inputs = width << stage
        self.trunk = nn.Sequential(*layers)
        self.logits = nn.Linear(inputs, num_classes)

    def forward(self, y: Tensor) -> Tensor:
        """Return the logits [B, num_classes] of images [B, in_channels, H, W]."""
        check_images(y, self.config["in_channels"], "ResNet", self.logits.weight)
        return self.logits(self.trunk(y - self.mean).mean((2, 3)))


class DirectDenoiser(Network):
    """Denoise directly with a U-Net whose encoder is the trunk of a GradResNet.

    The input gradient of a GradResNet is itself a U-Net, whose decoder is the transposed encoder; here the decoder has
    weights of its own. Bias-free and scale-preserving, hence blind to no noise level (Mohan et al. 2020).

    Args and input as :class:`cdn.model.gradresnet.GradResNet`, without classes and head.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
        stem: str = "cifar",
        norm: str = "scale-preserving",
        eps: float = 1e-3,
        mean: Mean = 0.5,
    ) -> None:
        super().__init__()
        self.config = dict(
            kind="denoiser", in_channels=in_channels, width=width, blocks=list(blocks), stem=stem, norm=norm, eps=eps
        )
        self.register_buffer("mean", per_channel(mean, in_channels))
        self.trunk = Trunk(in_channels, width, blocks, stem, norm, eps)
        channels = self.trunk.channels
        self.ups = nn.ModuleList(Filters(c, c // 2, size=1) for c in channels[:0:-1])
        self.merges = nn.ModuleList(Filters(c, c) for c in channels[-2::-1])
        self.out = Filters(width, in_channels)
        # The residual starts at 0: a decoder of random sign and size can be driven into dead units by its first steps.
        nn.init.zeros_(self.out.weight)

    def forward(self, y: Tensor) -> Tensor:
        """Return the residual ``y - D(y)``, the shape of y."""
        check_images(y, self.config["in_channels"], "DirectDenoiser", self.out.weight)
        features: list[Tensor] = self.trunk(y - self.mean)
        h = features.pop()
        for up, merge in zip(self.ups, cast("Iterable[Filters]", self.merges)):
            skip = features.pop()
            h = merge.gelu(F.interpolate(up(h), skip.shape[2:]) + skip)
        if h.shape[2:] != y.shape[2:]:
            h = F.interpolate(h, y.shape[2:])
        with torch.autocast(h.device.type, enabled=False):
            return self.out(h.to(self.out.weight.dtype)).to(y.dtype)


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, 3, stride)
        self.second = _conv(outputs, outputs, 3, 1)
        self.shortcut = _conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(h))) + self.shortcut(h))


def _conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))
