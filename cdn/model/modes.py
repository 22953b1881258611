"""Evaluation mode and precision of a model while it is measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cdn.errors import CDNError

PRECISIONS = ("float32", "bf16")


@contextmanager
def evaluating(model: nn.Module, precision: str) -> Iterator[torch.device]:
    """Put every module into evaluation mode, yield the device of the model, and restore the modes."""
    if precision not in PRECISIONS:
        raise CDNError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    try:
        model.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield device
    finally:
        for module, training in modes:
            module.training = training
