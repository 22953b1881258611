"""Parts of a network that keep their input alone and are computed again when a derivative needs them, at both orders.

torch.utils.checkpoint saves little where the gradient by the input is itself differentiated: what a part computes again
in the sweep of the score stays in the graph of that sweep until the last one.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cdn_kernels.backends.dispatch import automatic_impl, using
from cdn_kernels.ops.common import Context, Gradients, as_input, asked_for
from cdn_kernels.ops.torch_functions import FirstOrderFunctions
from cdn_kernels.transforms import transformed

Leaves = Sequence[Tensor]
# Layers that count every batch they see.
COUNTING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """Call a part of a network, and keep nothing but its inputs for its first and second derivatives.

    A training step with an input gradient holds what each part keeps from its forward, and again what the derivative of
    that part keeps. With this it holds the inputs and the gradients by the outputs of the parts, and all else of one
    part at a time. It computes each part three times more, once for the score and twice in the last sweep, which
    takes about twice the time of a step.

    Args:
        module: the part. Its forward must be a function of its inputs and parameters, the same at every call, but for
            random numbers, which are drawn again as they were.
        inputs: of its forward. Tensors of floats among them get gradients, those inside containers do not.

    Returns:
        what the module returns: a tensor, or a tuple of tensors.

    Raises:
        TypeError: module is no module, or returns something else.
        ValueError: a layer of it changes buffers at every call, as BatchNorm does while training.
        RuntimeError: later, where a third derivative is asked for.

    Limitations: under torch.func transforms and forward-mode differentiation nothing is recomputed.
    Source: Chen et al., "Training deep nets with sublinear memory cost" (2016), carried over to the second order.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"recomputed: module must be a torch.nn.Module, got {type(module).__name__}")
    for name, layer in module.named_modules():
        if isinstance(layer, COUNTING) and layer.training and layer.track_running_stats:
            raise ValueError(
                f"recomputed: {type(layer).__name__} {name!r} would count every batch again: freeze its statistics "
                "(.eval()), or leave it out"
            )
    if transformed() or not torch.is_grad_enabled():
        return module(*inputs)
    places = [place for place, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
    samples = [inputs[place] for place in places]
    parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    if not parameters and not any(x.requires_grad for x in samples):
        return module(*inputs)
    part = _Part(module, inputs, places, parameters, samples)
    found = _Forward.apply(part, *samples, *map(as_input, parameters))
    return found if part.returns_tuple else found[0]


class _Part:
    """A call of a module that can be made again, with other samples, as it was made at first.

    Attributes:
        returns_tuple: whether the module returns a tuple; known once it was called.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[Any], places: list[int], parameters: list[Tensor], samples: Leaves
    ) -> None:
        self.module, self.places, self.parameters = module, places, parameters
        self.inputs = [None if place in places else x for place, x in enumerate(inputs)]
        self.returns_tuple = False
        self.impl, self.intercepted = automatic_impl(), FirstOrderFunctions.active()
        device = next((x.device for x in [*samples, *parameters]), torch.device("cpu")).type
        self.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        self.random = _random_state(device)

    def outputs(self, samples: Leaves, *, again: bool) -> tuple[Tensor, ...]:
        """Call the module, which draws the random numbers of the first call again."""
        inputs = list(self.inputs)
        for place, x in zip(self.places, samples):
            inputs[place] = x
        with self._circumstances(again):
            found = self.module(*inputs)
        self.returns_tuple = isinstance(found, tuple)
        outputs = found if isinstance(found, tuple) else (found,)
        if not all(isinstance(x, Tensor) for x in outputs):
            raise TypeError(
                f"recomputed: {type(self.module).__name__} must return a tensor or a tuple of tensors, got "
                f"{type(found).__name__}"
            )
        return outputs

    @contextlib.contextmanager
    def _circumstances(self, again: bool) -> Iterator[None]:
        device, dtype, enabled = self.autocast
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if again:
                stack.enter_context(using(self.impl))
                stack.enter_context(torch.autocast(device, dtype, enabled))
                stack.callback(_set_random_state, _random_state(device))
                _set_random_state(self.random)
                if self.intercepted:
                    stack.enter_context(FirstOrderFunctions())
            yield

    def gradients(
        self, samples: Leaves, grads: Sequence[Tensor | None], wanted: Sequence[bool], *, create_graph: bool
    ) -> tuple[list[Tensor | None], list[Tensor]]:
        """Return the gradients by samples and parameters that are wanted, and the samples that they have a graph to."""
        fresh = [x.detach().requires_grad_(x.requires_grad or create_graph) for x in samples]
        outputs = self.outputs(fresh, again=True)
        return _gradients(outputs, grads, [*fresh, *self.parameters], wanted, create_graph=create_graph), fresh


def _gradients(
    outputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    leaves: Sequence[Tensor | None],
    wanted: Sequence[bool],
    *,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """Return the gradients by those leaves that are wanted, None by the others and where nothing depends on one."""
    pairs = [(y, g) for y, g in zip(outputs, grads) if y is not None and g is not None and y.requires_grad]
    asked = [x for x, is_wanted in zip(leaves, wanted) if is_wanted and x is not None]
    found: Sequence[Tensor | None] = [None] * len(asked)
    if pairs and asked:
        values, weights = zip(*pairs)
        found = torch.autograd.grad(values, asked, weights, create_graph=create_graph, allow_unused=True)
    rest = iter(found)
    return [next(rest) if is_wanted else None for is_wanted in wanted]


def _random_state(device: str) -> tuple[Tensor, Tensor | None]:
    """Return the state of torch's generators, of the CPU and of the GPU that is in use, if it may be read."""
    asks = device == "cuda" and not torch.cuda.is_current_stream_capturing()
    return torch.get_rng_state(), torch.cuda.get_rng_state() if asks else None


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    of_cpu, of_gpu = state
    torch.set_rng_state(of_cpu)
    if of_gpu is not None:
        torch.cuda.set_rng_state(of_gpu)


class _Forward(torch.autograd.Function):
    """The outputs of a part."""

    @staticmethod
    def forward(ctx: Context, part: _Part, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.part = part
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        samples = [x.detach().requires_grad_(x.requires_grad) for x in tensors[: len(part.places)]]
        return tuple(y.detach() for y in part.outputs(samples, again=False))

    @staticmethod
    def backward(ctx: Context, *grads: Tensor | None) -> Gradients:
        return None, *_Backward.apply(ctx.part, _asked(ctx, 1), len(grads), *grads, *ctx.saved_tensors)


class _Backward(torch.autograd.Function):
    """The gradients by samples and parameters, from those by the outputs."""

    @staticmethod
    def forward(
        ctx: Context, part: _Part, wanted: list[bool], count: int, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.part, ctx.wanted, ctx.count = part, wanted, count
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        samples = [x for x in tensors[count : count + len(part.places)] if x is not None]
        found, _ = part.gradients(samples, tensors[:count], wanted, create_graph=False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Context, *tangents: Tensor | None) -> Gradients:
        if torch.is_grad_enabled():
            raise RuntimeError("recomputed: third derivatives are not computed again; call the module itself for them")
        part, count = ctx.part, ctx.count
        given, samples = ctx.saved_tensors[:count], ctx.saved_tensors[count : count + len(part.places)]
        grads = [None if g is None else g.detach().requires_grad_() for g in given]
        with torch.enable_grad():
            found, fresh = part.gradients(samples, grads, ctx.wanted, create_graph=True)
        leaves = [*grads, *fresh, *part.parameters]
        return None, None, None, *_gradients(found, tangents, leaves, _asked(ctx, 3))


def _asked(ctx: Context, first: int) -> list[bool]:
    """Tell which gradients the running backward pass will use, of the saved inputs, some of which may be None.

    Args:
        first: the place of the first of them among all inputs; those before it are no tensors.
    """
    found, missing = [], first
    for place, x in enumerate(ctx.saved_tensors, first):
        missing += x is None
        found.append(x is not None and asked_for(ctx, place, missing))
    return found
