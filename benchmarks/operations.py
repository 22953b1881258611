"""The operations that are timed, each as the library has it and as one would write it without."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

import cdn_kernels
from cdn_kernels import reference

ORDERS = ("forward", "backward", "double backward")
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
KEY = cdn_kernels.Noise(0)
GROUP_SIZE = 8
EPS = 1e-3


class Operation(NamedTuple):
    """A differentiable operation on feature images.

    Attributes:
        library: a function of (inputs..., impl).
        plain: the same by functions of PyTorch.
        inputs: a function of (shape, dtype) that returns tensors; the first is differentiated to second order.
        flops: of a forward on inputs, in convolutions.
    """

    library: Callable
    plain: Callable
    inputs: Callable
    flops: Callable


def _conv_inputs(shape, dtype):
    channels = shape[1]
    filters = torch.randn(channels, channels, 3, 3, dtype=dtype) / math.sqrt(9 * channels)
    return [torch.randn(shape, dtype=dtype), filters]


def _norm_inputs(shape, dtype):
    return [torch.randn(shape, dtype=dtype), torch.rand(shape[1]) + 0.5, torch.randn(shape, dtype=dtype)]


def _norm(scale_preserving):
    def library(x, gain, residual, impl):
        return cdn_kernels.gelu_group_norm(
            x, gain, len(gain) // GROUP_SIZE, residual=residual, eps=EPS, scale_preserving=scale_preserving, impl=impl
        )

    def plain(x, gain, residual):
        return F.group_norm(F.gelu(x + residual), len(gain) // GROUP_SIZE, gain.to(x.dtype), None, EPS)

    def defined(x, gain, residual):
        return reference.gelu_group_norm(x, gain, len(gain) // GROUP_SIZE, residual=residual, eps=EPS)

    return Operation(library, defined if scale_preserving else plain, _norm_inputs, lambda x, *_: 0)


OPERATIONS = {
    "conv + GELU": Operation(
        lambda x, weight, impl: cdn_kernels.conv2d_gelu(x, weight, impl=impl),
        lambda x, weight: F.gelu(F.conv2d(x, weight, padding=1)),
        _conv_inputs,
        lambda x, weight: 2 * x.numel() * weight[0].numel(),
    ),
    "residual + GELU + norm": _norm(scale_preserving=False),
    "residual + GELU + scale-preserving norm": _norm(scale_preserving=True),
}


class Sweep:
    """An operation and its derivatives up to an order; calling it returns all that was computed.

    "backward" includes the forward, and "double backward" both: the gradient by the first input and what
    differentiating its product with a direction gives, which is what training on an input gradient takes.

    Args:
        function: of the inputs.
        inputs: tensors.
        order: one of ORDERS.
    """

    def __init__(self, function, inputs, order, layout):
        self.function, self.order = function, order
        # [C, C, 3, 3] filters take the layout of the images.
        place = lambda t: t.contiguous(memory_format=layout) if t.dim() == 4 else t
        self.inputs = [place(t).requires_grad_(order != "forward") for t in inputs]
        generator = torch.Generator(inputs[0].device).manual_seed(2)
        self.grad, self.direction = (
            place(torch.randn(inputs[0].shape, generator=generator, device=inputs[0].device).to(inputs[0].dtype))
            for _ in range(2)
        )
        self.grad.requires_grad_(order == "double backward")

    def __call__(self):
        if self.order == "forward":
            with torch.no_grad():
                return [self.function(*self.inputs)]
        y = self.function(*self.inputs)
        if self.order == "backward":
            return [y, *torch.autograd.grad(y, self.inputs, self.grad)]
        (first,) = torch.autograd.grad(y, self.inputs[:1], self.grad, create_graph=True)
        return [y, first, *torch.autograd.grad(first, [*self.inputs, self.grad], self.direction)]

    def bytes(self):
        """Count the bytes of all that goes in and out, each tensor once."""
        given = [*self.inputs, self.grad, self.direction][: len(self.inputs) + ORDERS.index(self.order)]
        return sum(t.nbytes for t in given + self() if t.dim() == 4)


# How many convolutions of first order each order is made of: six units for double backward.
UNITS = {"forward": 1, "backward": 3, "double backward": 6}
