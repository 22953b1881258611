"""What is being done to the tensors at hand: torch.func transforms, forward-mode differentiation, recording."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cdn_kernels.torch_private import forward_mode_is_active, transforms_are_active


def transformed() -> bool:
    """Tell whether a torch.func transform or forward-mode differentiation is active.

    The registered operations have backward formulas only: transforms stop at them, and tangents would be lost.
    """
    return transforms_are_active() or forward_mode_is_active()


@contextmanager
def recorded_if(create_graph: bool) -> Iterator[None]:
    """Record what is done inside if a graph was asked for, or a transform or forward mode is active; nothing otherwise.

    This is the rule of every function with ``create_graph``: without it results never require grad, and where
    derivatives are taken without asking tensors whether they require grad, it goes without saying.
    """
    with torch.inference_mode(False), torch.set_grad_enabled(create_graph or transformed()):
        yield


def can_be_read(x: Tensor) -> bool:
    """Tell whether the values of a tensor may decide what is done: not where other values may come in their place."""
    if transformed() or torch.compiler.is_compiling() or x.is_meta:
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())
