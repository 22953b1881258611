"""All public functions that take images, in one table: what walks the public surface with a bad argument walks this."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import cdn
import cdn_kernels
from cdn.evaluation.metrics import psnr, ssim
from cdn.methods.class_conditional import denoise_with_classes
from cdn.methods.detection import detectors as detection
from cdn.methods.prior.residual import blind_residual
from cdn.methods.smoothing import LevelVote, predict_smoothed
from cdn.methods.smoothing.randomized import Randomized
from cdn.model import density

KEY = cdn.Noise(3)


class TorchNetwork(nn.Module):
    """Logits of a network of PyTorch's own layers, by which images are not checked."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 4)
        self.config = dict(num_classes=4)

    def forward(self, y: Tensor) -> Tensor:
        return self.last(nn.functional.silu(self.conv(y)).mean((2, 3)))


@dataclass
class Networks:
    """One untrained network of each kind, in evaluation mode."""

    joint: nn.Module = field(default_factory=lambda: cdn.gradresnet_small(4, 1, width=8).eval())
    classifier: nn.Module = field(default_factory=lambda: cdn.ResNet(4, 1, width=8, blocks=(1, 1)).eval())
    denoiser: nn.Module = field(default_factory=lambda: cdn.DirectDenoiser(1, width=8, blocks=(1, 1)).eval())
    torch: nn.Module = field(default_factory=lambda: TorchNetwork().eval())

    def each(self) -> tuple[nn.Module, ...]:
        return self.joint, self.classifier, self.denoiser, self.torch


def labels(y: Tensor) -> Tensor:
    return torch.arange(len(y)) % 4


def distance_to_itself_upside_down(n: Networks, y: Tensor) -> Tensor:
    return cdn.similarity(n.joint, y, y.flip(2), nodes=2)


def vote(n: Networks, y: Tensor, sigma: Any) -> Tensor:
    reference = torch.rand(3, *y.shape[1:], generator=torch.Generator().manual_seed(5)).to(next(n.joint.parameters()))
    return LevelVote(n.classifier, n.joint, [sigma], reference, KEY)(y, KEY)


@dataclass
class Call:
    """How a function is called with images y [B, 1, H, W].

    Attributes:
        function: of the networks, y and a noise level; returns tensors, one row for each image.
        sigma: whether the noise level counts.
    """

    function: Callable[[Networks, Tensor, Any], Tensor | tuple[Tensor, ...]]
    sigma: bool = False

    def __call__(self, n: Networks, y: Tensor, sigma: Any = 0.2) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        found = self.function(n, y, sigma)
        return (found,) if isinstance(found, Tensor) else tuple(part for part in found if part is not None)


# By name: those of cdn.__all__, and others under the name of their module.
CALLS: dict[str, Call] = {
    "log_prob": Call(lambda n, y, s: cdn.log_prob(n.joint, y)),
    "score": Call(lambda n, y, s: cdn.score(n.joint, y)),
    "score of a class": Call(lambda n, y, s: cdn.score(n.joint, y, 2)),
    "class_scores": Call(lambda n, y, s: density.class_scores(n.joint, y).transpose(0, 1)),
    "denoise": Call(lambda n, y, s: cdn.denoise(n.joint, y, s), sigma=True),
    "denoise directly": Call(lambda n, y, s: cdn.denoise(n.denoiser, y, s), sigma=True),
    "estimate_sigma": Call(lambda n, y, s: cdn.estimate_sigma(n.joint, y)),
    "similarity": Call(lambda n, y, s: distance_to_itself_upside_down(n, y)),
    "Denoiser": Call(lambda n, y, s: cdn.Denoiser(n.joint)(y, s).detach(), sigma=True),
    "Protected": Call(lambda n, y, s: cdn.Protected(n.classifier, n.joint, s)(y).detach(), sigma=True),
    "GradResNet": Call(lambda n, y, s: n.joint(y).detach()),
    "ResNet": Call(lambda n, y, s: n.classifier(y).detach()),
    "DirectDenoiser": Call(lambda n, y, s: n.denoiser(y).detach()),
    "certify": Call(lambda n, y, s: cdn.certify(n.joint, y, s, 4, 12, 0.3), sigma=True),
    "certification.predict_smoothed": Call(lambda n, y, s: predict_smoothed(n.joint, y, s, 12, 0.3), sigma=True),
    "certification.LevelVote": Call(lambda n, y, s: vote(n, y, s).detach(), sigma=True),
    "certification.Randomized": Call(lambda n, y, s: Randomized(lambda x, key: n.joint(x), 2)(y, KEY).detach()),
    "analysis.gather": Call(lambda n, y, s: detection.gather(n.joint, y)),
    "analysis.denoise_with_classes": Call(lambda n, y, s: denoise_with_classes(n.joint, y, s, labels(y)), sigma=True),
    "evaluation.psnr": Call(lambda n, y, s: psnr(y, y.flip(2))),
    "evaluation.ssim": Call(lambda n, y, s: ssim(y, y.flip(2))),
    "prior.blind_residual": Call(lambda n, y, s: blind_residual(n.joint)(y)),
    "cdn_kernels.sample_noise": Call(lambda n, y, s: cdn_kernels.sample_noise(y, s, KEY), sigma=True),
    "cdn_kernels.score": Call(lambda n, y, s: cdn_kernels.score(lambda y: n.torch(y).logsumexp(1), y)),
    "log_prob of torch.nn": Call(lambda n, y, s: cdn.log_prob(n.torch, y)),
    "score of torch.nn": Call(lambda n, y, s: cdn.score(n.torch, y)),
    "denoise by torch.nn": Call(lambda n, y, s: cdn.denoise(n.torch, y, s), sigma=True),
    "class_scores of torch.nn": Call(lambda n, y, s: density.class_scores(n.torch, y).transpose(0, 1)),
    "similarity by torch.nn": Call(lambda n, y, s: cdn.similarity(n.torch, y, y.flip(2), nodes=2)),
}
# They reduce a batch to one number, or fill buffers: what they do with bad images has tests of its own.
REDUCE: dict[str, Call] = {
    "joint_loss": Call(lambda n, y, s: cdn.joint_loss(n.joint, y, labels(y), s, KEY)[0].detach().view(1), sigma=True),
    "joint_step": Call(lambda n, y, s: cdn.joint_step(n.joint, y, labels(y), s, KEY)[0].view(1), sigma=True),
    "joint_loss of torch.nn": Call(
        lambda n, y, s: cdn.joint_loss(n.torch, y, labels(y), s, KEY)[0].detach().view(1), sigma=True
    ),
    "calibrate": Call(lambda n, y, s: (cdn.calibrate(n.joint, y, KEY), n.joint.calibration_mean_square)[1][:0]),
}
# Names of cdn.__all__ that take no images.
OTHERS = {
    "Certificate",
    "Noise",
    "NoiseLevels",
    "WholeBatch",
    "gradresnet18",
    "gradresnet34",
    "gradresnet_small",
    "load",
    "save_model",
}
