"""BatchNorm over the images of all processes, on CPUs as on GPUs."""

from typing import Any

import torch
from torch import Tensor, nn

from cdn.processes import Processes


class SharedBatchNorm(nn.BatchNorm2d):
    """Normalize by the mean and variance of the images of all processes while training, as nn.BatchNorm2d does of one.

    The statistics are sums of the same order on all processes, which run the same layers one after the other; every one
    has an image or more. The gradient goes through them. Torch's SyncBatchNorm runs on GPUs alone.

    Args:
        like: the layer in whose place it stands, with the same parameters and running statistics.
        processes: whose images these are.
    """

    def __init__(self, like: nn.BatchNorm2d, processes: Processes) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, device="meta")
        self.processes = processes
        self.weight, self.bias = like.weight, like.bias
        self.running_mean, self.running_var = like.running_mean, like.running_var
        self.num_batches_tracked = like.num_batches_tracked

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized images, [B, C, H, W]."""
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            y = self._normalized(x.to(torch.promote_types(x.dtype, torch.float32)))
        return y.to(x.dtype)

    def _normalized(self, x: Tensor) -> Tensor:
        dims, column = (0, 2, 3), (1, -1, 1, 1)
        count = x.new_full((1,), x.numel() // x.shape[1])
        *sums, count = _Sum.apply(torch.cat([x.sum(dims), count]), self.processes).split([self.num_features, 1])
        mean = sums[0] / count
        centered = x - mean.view(column)
        variance = _Sum.apply(centered.square().sum(dims), self.processes) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return centered * scale.view(column) + self.bias.view(column)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        for running, found in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None and self.momentum is not None  # as those of this package are
            running.lerp_(found.to(running.dtype), self.momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)


def share_statistics(model: nn.Module, processes: Processes) -> None:
    """Let every BatchNorm of a model take its statistics over all processes."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SharedBatchNorm(child, processes))


class _Sum(torch.autograd.Function):
    """The sum over all processes, of whose losses the gradient is a sum likewise."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        total = value.clone()
        processes.add(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        ctx.processes.add(total)
        return total, None
