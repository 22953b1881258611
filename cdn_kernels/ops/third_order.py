"""Derivatives of the third order, and of any higher one: those of the reference, in torch's own operations.

A network that others wrote may be differentiated any number of times, as for the Laplacian of a physics-informed
network; so what takes the place of torch's functions (:mod:`cdn_kernels.ops.torch_functions`) must be too.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cdn_kernels.ops.common import same_view


def tangents(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, tangent: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of <g, tangent> by grad and by the inputs, g the gradient of <function, grad> by the first.

    Args:
        function: of the inputs, differentiable any number of times.
        inputs: tensors that require gradients, as grad and tangent do.
        grad, tangent: of the shape of the result, and of the first input.
    """
    (g,) = torch.autograd.grad(function(*inputs), inputs[0], grad, create_graph=True)
    return torch.autograd.grad(g, (grad, *inputs), tangent, create_graph=True)


def third_derivatives(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad: Tensor,
    tangent: Tensor,
    grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Return the gradients by the inputs, grad and tangent of what :func:`tangents` returns, for its gradients."""
    return derivatives(lambda *t: tangents(function, t[:-2], *t[-2:]), (*inputs, grad, tangent), grads)


def derivatives(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Return the gradients by the inputs of a function that returns some tensors, for the gradients by these.

    They can be differentiated again where gradients are recorded, as in a backward pass that creates a graph.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [same_view(t) if create_graph and t.requires_grad else t.detach().requires_grad_() for t in inputs]
        results = function(*leaves)
        wanted = [(result, g) for result, g in zip(results, grads, strict=True) if g is not None]
        return torch.autograd.grad(
            [result for result, _ in wanted],
            leaves,
            [g.to(result.dtype) for result, g in wanted],
            create_graph=create_graph,
            allow_unused=True,
        )
