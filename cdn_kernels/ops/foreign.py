"""Run blocks of someone else's so that their second derivatives consist of first ones.

torch differentiates the backward pass of a block once more, operation by operation. Here that backward pass is one
operation, the block's vector-Jacobian product ``g_x = J^T g``, and its derivative along a tangent v is taken in forward
mode. One run of the block and of its backward pass on dual numbers gives ``J v``, the gradient of ``<g_x, v>`` by g,
and the tangents of all gradients of ``<out, g>``, which are the gradients of ``<g_x, v>`` by x and the parameters:
second derivatives are symmetric. (The other way round, reverse over forward, torch 2.13 is silently wrong for layer
and batch norm.)
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.parameter import is_lazy

from cdn_kernels.ops.common import Context, Gradients, as_input, asked_for, no_third_order, same_view
from cdn_kernels.ops.forward_mode import Composed
from cdn_kernels.replaced import replaced
from cdn_kernels.torch_private import graph_is_kept, may_be_view
from cdn_kernels.transforms import transformed


def foreign(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Run ``block(*inputs)`` with its own vjp as its backward pass, and with the jvp of that as the derivative.

    Use it where torch's double backward is missing, and there alone. Elsewhere a training step of a block took 1.8
    times as long with it (two convolutions, 16 images of 64x32x32) to 3.7 times (a transformer layer of width 32),
    since the block runs forward and backward once more, on dual numbers, by operations that torch runs in Python (one
    thread of an Intel Xeon with AVX-512, torch 2.13, 2026-11-30). :func:`cdn_kernels.score_matching_step` runs torch's
    convolutions through first derivatives without being told.

    SiLU, Mish, GroupNorm and weight_norm, whose backward passes have no forward mode, run in the second forward as
    compositions of functions that have one. Of what else has none the error names the operation.

    Args:
        block: a module, or a function of tensors that are all among the inputs. The second forward, for the tangent,
            finds random numbers, buffers and autocast as the first one did and leaves the buffers alone; forward hooks
            run again.
        inputs: what to call it with; only tensors that stand there directly are differentiated.

    Returns:
        The output of the block, one tensor. Differentiable twice. Under torch.func transforms and forward-mode
        differentiation, where no gradient is needed, and in the first call of a lazy module, the block just runs. Its
        parameters, buffers and attributes are afterwards what they were. Limitation: as good as torch's forward
        mode, which is wrong for torch.linalg.det, slogdet and solve (2.13).

    Raises:
        TypeError: block cannot be called, or does not return one tensor.
        ValueError: block uses a tensor that requires grad and is not among its inputs and parameters.
        RuntimeError: block changes its input in place; or, in the second derivative, an operation of it
            has none in forward mode.
    """
    if not callable(block):
        raise TypeError(f"foreign: block must be a module or a function, got {type(block).__name__}")
    parameters = dict(block.named_parameters()) if isinstance(block, nn.Module) else {}
    tensors = [*(i for i in inputs if isinstance(i, Tensor)), *parameters.values()]
    unbuilt = any(is_lazy(t) for t in tensors)  # the first call of a lazy module makes its parameters
    if unbuilt or transformed() or not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return block(*inputs)
    return by_first_derivatives(_Block(block, inputs, list(parameters), tensors), tensors)


class Differentiable(Protocol):
    """A block as a function of tensors, which can say its first derivatives and those of its vjp."""

    def graph(self, leaves: Sequence[Tensor]) -> Tensor:
        """Return the output with its graph."""

    def second_derivatives(
        self, leaves: Sequence[Tensor], tangents: Sequence[Tensor | None], g: Tensor
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Return the derivatives along the tangents of the leaves, of which None is zero.

        Returns:
            (that of the output; those of the gradients of <out, g> by each leaf that requires grad, None for zero).
        """


def by_first_derivatives(block: Differentiable, tensors: Sequence[Tensor]) -> Tensor:
    """Run a block on tensors, some of which require grad, with its vjp and jvp as its derivatives."""
    return _Forward.apply(block, *(as_input(t) for t in tensors))


# ------------------------------------------------------------------------------------------------------------
# Blocks of any kind
# ------------------------------------------------------------------------------------------------------------


class _Block:
    """A module or function as a function of tensors, with all that a second run needs to give the same again.

    Args:
        block, inputs: what to run.
        names: of the parameters of a module.
        tensors: those among the inputs, then the parameters; autograd keeps them, not this object.
    """

    def __init__(
        self, block: Callable[..., Tensor], inputs: Sequence[Any], names: Sequence[str], tensors: Sequence[Tensor]
    ) -> None:
        self.block, self.names = block, names
        self.places = [place for place, i in enumerate(inputs) if isinstance(i, Tensor)]
        self.inputs = [None if isinstance(i, Tensor) else i for i in inputs]
        device = tensors[0].device
        self.autocast: dict[str, Any] = dict(
            device_type=device.type,
            enabled=torch.is_autocast_enabled(device.type),
            dtype=torch.get_autocast_dtype(device.type),
        )
        self.random = [(g, g.get_state()) for g in _generators(device)]
        self.buffers = {n: b.clone() for n, b in block.named_buffers()} if isinstance(block, nn.Module) else {}

    def __str__(self) -> str:
        return getattr(self.block, "__name__", type(self.block).__name__)

    def graph(self, leaves: Sequence[Tensor]) -> Tensor:
        try:
            out = self._run(leaves, {})
        except RuntimeError as error:
            if "leaf Variable that requires grad" in str(error):
                raise RuntimeError(f"foreign: {self} must not change its input in place; call it directly") from error
            raise
        if not isinstance(out, Tensor):
            raise TypeError(f"foreign: {self} must return one tensor, got {type(out).__name__}")
        known = {id(leaf) for leaf in leaves}
        for leaf in graph_leaves(out):
            if id(leaf) not in known:
                raise ValueError(
                    f"foreign: {self} uses a tensor of shape {list(leaf.shape)} that requires grad and is "
                    "not among its inputs; pass it, or make it a parameter of a module"
                )
        return out

    def second_derivatives(
        self, leaves: Sequence[Tensor], tangents: Sequence[Tensor | None], g: Tensor
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        with _random_numbers_again(self.random), torch.autocast(**self.autocast), forward_ad.dual_level():
            duals = [t if v is None else forward_ad.make_dual(t, v) for t, v in zip(leaves, tangents)]
            wanted = [d for d in duals if d.requires_grad]
            try:
                with Composed():
                    out = self._run(duals, {n: b.clone() for n, b in self.buffers.items()})
                with torch.autocast(self.autocast["device_type"], enabled=False):
                    grads = (
                        torch.autograd.grad(out, wanted, g, allow_unused=True)
                        if out.requires_grad
                        else [None] * len(wanted)
                    )
            except NotImplementedError as error:
                operation = re.search(r"forward AD with (\S+)", str(error))
                raise RuntimeError(
                    f"foreign: {self} uses {operation.group(1) if operation else 'an operation'} without derivative in "
                    "forward mode; call it directly, for torch's double backward"
                ) from error
            tangent, *others = (None if t is None else forward_ad.unpack_dual(t).tangent for t in (out, *grads))
        return torch.zeros_like(g) if tangent is None else tangent, others

    def _run(self, tensors: Sequence[Tensor], buffers: dict[str, Tensor]) -> Tensor:
        inputs = list(self.inputs)
        for place, tensor in zip(self.places, tensors):
            inputs[place] = tensor
        if not isinstance(self.block, nn.Module):
            return self.block(*inputs)
        with replaced(self.block, dict(zip(self.names, tensors[len(self.places) :])) | buffers):
            return self.block(*inputs)


def _generators(device: torch.device) -> list[torch.Generator]:
    accelerator = [torch.cuda.default_generators[device.index]] if device.type == "cuda" else []
    return [torch.default_generator, *accelerator]


@contextmanager
def _random_numbers_again(states: Iterable[tuple[torch.Generator, Tensor]]) -> Iterator[None]:
    """Draw random numbers from earlier states of the generators, which are left as found."""
    found = [(generator, generator.get_state()) for generator, _ in states]
    try:
        for generator, state in states:
            generator.set_state(state)
        yield
    finally:
        for generator, state in found:
            generator.set_state(state)


def graph_leaves(out: Tensor) -> Iterator[Tensor]:
    """Yield the leaves that require grad in the graph of a tensor."""
    nodes: list[Any] = [out.grad_fn]  # Any: torch declares no variable of its nodes
    seen = {None}
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        following = node.next_functions
        if following:
            nodes += [next_node for next_node, _ in following]
        elif (leaf := getattr(node, "variable", None)) is not None:  # only those that accumulate have one
            yield leaf


# ------------------------------------------------------------------------------------------------------------
# Derivatives
# ------------------------------------------------------------------------------------------------------------


class _Forward(torch.autograd.Function):
    """Run a block, and keep its graph to itself."""

    @staticmethod
    def forward(ctx: Context, block: Differentiable, *tensors: Tensor) -> Tensor:
        ctx.block = block
        ctx.leaves = [t.detach().requires_grad_(t.requires_grad) for t in tensors]
        ctx.save_for_backward(*tensors)
        with torch.enable_grad():
            out = block.graph(ctx.leaves)
            if not out.requires_grad:
                ctx.mark_non_differentiable(out)
                return out
            # Another tensor than the inputs, and with memory of its own: who changes it in place changes nothing else.
            if out.is_leaf or may_be_view(out):
                out = out.clone()
        ctx.edge = get_gradient_edge(out)
        return out.detach()

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> Gradients:
        tensors = ctx.saved_tensors
        asked = [i for i in range(len(tensors)) if asked_for(ctx, 1 + i, missing=1)]
        # The graph inside goes when the graph around it goes.
        keep = graph_is_kept()
        grads = _Vjp.apply(ctx.block, (ctx.edge, ctx.leaves, keep), asked, g, *tensors)
        if not keep:
            ctx.edge = ctx.leaves = None
        return None, *_scatter(grads, asked, len(tensors))


class _Vjp(torch.autograd.Function):
    """Compute the gradients of <out, g> by those tensors that are asked for."""

    @staticmethod
    def forward(
        ctx: Context,
        block: Differentiable,
        graph: tuple[GradientEdge, Sequence[Tensor], bool],
        asked: Sequence[int],
        g: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.block, ctx.asked = block, asked
        ctx.save_for_backward(g, *tensors)
        ctx.set_materialize_grads(False)
        edge, leaves, keep = graph
        return torch.autograd.grad(
            [edge], [leaves[i] for i in asked], [g], retain_graph=keep, allow_unused=True, materialize_grads=True
        )

    @staticmethod
    def backward(ctx: Context, *tangents: Tensor | None) -> Gradients:
        g, *tensors = ctx.saved_tensors
        if all(v is None for v in tangents):
            return (None,) * (4 + len(tensors))
        by_g, *asked = [asked_for(ctx, 3 + i, missing=3) for i in range(1 + len(tensors))]
        leaves = [t.detach().requires_grad_(a) for t, a in zip(tensors, asked)]
        with torch.set_grad_enabled(any(asked)):
            tangents_of_all = _scatter(tangents, ctx.asked, len(tensors))
            tangent, grads = ctx.block.second_derivatives(leaves, tangents_of_all, g.detach())
        grads = _scatter(grads, [i for i, a in enumerate(asked) if a], len(tensors))
        results = tangent.detach() if by_g else None, *grads
        if torch.is_grad_enabled():
            results = _SecondDerivatives.apply(len(results), *results, *tangents, g, *tensors)
        return None, None, None, *results


class _SecondDerivatives(torch.autograd.Function):
    """Pass second derivatives on, and refuse to differentiate them."""

    @staticmethod
    def forward(ctx: Context, count: int, *tensors: Tensor | None) -> Gradients:
        return tuple(None if t is None else same_view(t) for t in tensors[:count])

    backward = staticmethod(no_third_order)


def _scatter(values: Iterable[Tensor | None], indices: Iterable[int], length: int) -> list[Tensor | None]:
    """Return a list of None with values at some indices."""
    full: list[Tensor | None] = [None] * length
    for index, value in zip(indices, values):
        full[index] = value
    return full
