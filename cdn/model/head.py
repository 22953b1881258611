"""The joint head: class logits and a log-density from the features of every stage."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cdn_kernels
from cdn_kernels.floors import square_floor

HEADS = ("linear", "quadratic", "log-energy")
DEEP_ENERGY = 0.1


class Head(nn.Module):
    """Turn the features h_l of the stages into ``f_c = log p(y, c)`` up to a constant.

    Every stage but the last is pooled and projected to half of its channels (the side connections), and p is their
    concatenation with the pooled last stage. A log-density is extensive: at noise level sigma its gradient has norm
    ``sqrt(d) / sigma``, which pooled features alone cannot give. The energy
    ``q(y) = sum_l mean_pixels |A_l h_l|^2`` is of degree 2 in scale-preserving features, so that
    ``-(d/2) log q`` has the gradient ``-r / sigma_hat^2`` of a blind denoiser with residual ``r = grad q`` up to
    scale, and ``sigma_hat^2 = 2 q / d``. Where mean squares are at their floor or below
    (:func:`cdn_kernels.floors.square_floor`), as those of an image that equals the mean or nearly, they are constants:
    the log-energy has the score 0, and second derivatives 0.

    Args:
        channels: of each stage.
        num_classes: C.
        kind: "linear" ``f = W p``; "quadratic" ``f = W p / rms(p) - (d/2) q``; "log-energy"
            ``f = W p / rms(p) - (d/2) log q``.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, kind: str) -> None:
        super().__init__()
        if kind not in HEADS:
            raise ValueError(f"GradResNet: head must be one of {', '.join(HEADS)}, got {kind!r}")
        self.kind = kind
        self.sides = nn.ModuleList(nn.Linear(c, c // 2, bias=False) for c in channels[:-1])
        self.classes = nn.Linear(sum(c // 2 for c in channels[:-1]) + channels[-1], num_classes, bias=False)
        # Deep energies start small: at full size they make the score a thousand times too rough, and what they draw
        # from the deep features before that is unlearned is missing to the classes (docs/ablations.md).
        maps: Sequence[int] = [] if kind == "linear" else channels
        self.maps = nn.ParameterList(
            torch.randn(c // 2, c, 1, 1) * ((DEEP_ENERGY if stage else 1.0) / math.sqrt(c))
            for stage, c in enumerate(maps)
        )

    def forward(self, features: list[Tensor], dimension: int, log_scale: float | Tensor = 0.0) -> Tensor:
        """Return logits [B, C].

        Args:
            features: list of [B, C_l, H_l, W_l].
            dimension: d, the number of values of an image.
            log_scale: logarithm of the factor that q was divided by, a number or [B].
        """
        pooled = [cdn_kernels.channel_mean(h) for h in features]
        # In half precision the logits would carry less than three digits; the products are tiny, so keep float32.
        with torch.autocast(features[0].device.type, enabled=False):
            p = torch.cat([side(h) for side, h in zip(self.sides, pooled)] + pooled[-1:], 1)
            if self.kind == "linear":
                return self.classes(p)
            logits = self.classes(_unit_rms(p))
        q = cdn_kernels.energy(features, list(self.maps))
        if self.kind == "log-energy":
            q = _floored_log(q) + log_scale
        return logits - (dimension / 2) * q[:, None]


def _unit_rms(p: Tensor) -> Tensor:
    """Return ``p / rms(p)``, and 0 with derivatives 0 for rows p [C] at the floor, where no direction stands out."""
    # Asked this way round, what is not finite is not blank: it stays nan.
    blank = p.detach().square().mean(1, keepdim=True) <= square_floor(p.dtype)
    # Chosen twice: a derivative of what is not chosen would be infinite, and infinity times 0 is nan.
    return torch.where(blank, 0.0, F.rms_norm(torch.where(blank, 1.0, p), p.shape[1:], eps=torch.finfo(p.dtype).tiny))


def _floored_log(q: Tensor) -> Tensor:
    """Return ``log q`` [B], and at the floor or below it the logarithm of the floor, with derivatives 0."""
    floor = square_floor(q.dtype)
    blank = q.detach() <= floor
    return torch.where(blank, math.log(floor), torch.where(blank, 1.0, q).log())
