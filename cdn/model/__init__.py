"""Networks: the joint model and its baselines."""

from collections.abc import Mapping
from typing import Any

from cdn.model.baselines import DirectDenoiser, ResNet
from cdn.model.gradresnet import GradResNet, gradresnet18, gradresnet34, gradresnet_small
from cdn.model.network import Network

KINDS: dict[str, type[Network]] = {"gradresnet": GradResNet, "resnet": ResNet, "denoiser": DirectDenoiser}


def build(config: Mapping[str, Any]) -> Network:
    """Build the model that a ``model.config`` dict describes, with fresh weights.

    Raises:
        ValueError: an unknown kind or option.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"model kind must be one of {', '.join(KINDS)}, got {kind!r}")
    try:
        return KINDS[kind](**options)
    except TypeError as error:
        raise ValueError(f"model config of kind {kind!r} does not fit: {error}") from None


__all__ = [
    "KINDS",
    "DirectDenoiser",
    "GradResNet",
    "Network",
    "ResNet",
    "build",
    "gradresnet18",
    "gradresnet34",
    "gradresnet_small",
]
