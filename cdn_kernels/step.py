"""One training step of any network whose input gradient is part of the loss."""

import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cdn_kernels import reference
from cdn_kernels.backends.dispatch import check_impl, using
from cdn_kernels.ops import torch_functions
from cdn_kernels.ops.any_order import AnyOrderNorms, has_norms
from cdn_kernels.ops.filters import SharedFilters
from cdn_kernels.ops.foreign import graph_leaves
from cdn_kernels.ops.leading import filled, leading
from cdn_kernels.ops.torch_functions import FirstOrderFunctions, may_gain, plain_attention
from cdn_kernels.phases import phase
from cdn_kernels.torch_private import detached, rebuilt, tensors_in, tree_map
from cdn_kernels.transforms import transformed

# A tensor, or a tuple or dict that holds some.
Samples = Tensor | tuple[Any, ...] | dict[str, Any]


class Step(NamedTuple):
    """What :func:`score_matching_step` computed on its way, detached."""

    loss: Tensor
    outputs: Any
    score: Any


def score_matching_step(
    network: Callable[..., Any],
    y: Samples,
    loss: Callable[..., Tensor],
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    log_density: Callable[..., Tensor] | None = None,
    scaled: bool = False,
    scored: int | None = None,
    impl: str = "auto",
) -> Step:
    """Add the parameter gradient of a loss of a network's outputs and of its score to ``.grad``.

    The step consists of four sweeps: forward; score, backward to the input; tangent, forward along the gradient of the
    loss by the score; and adjoint, backward through both. It accumulates as ``loss.backward()`` does, so optimizers,
    frozen parameters, clipping, hooks and gradient accumulation work as ever. In its score sweep the library's
    operations compute no weight gradients, and in no sweep they use convolutions of higher order.

    Convolutions of torch inside the network run as under :func:`cdn_kernels.first_order`, and so do SiLU, ELU, GELU,
    softmax, group, layer and batch normalization on CPUs where they are large, the last in training; the network is not
    touched for that. The same holds in the loss, which may call the network again, if that is a module. Linear layers,
    other pointwise functions and norms are left to torch's double backward.

    Args:
        network: a module or function, called as ``network(y, *args, **kwargs)``; a tuple y fills as many places.
        y: samples [B, ...], floating point. One that requires grad is part of the graph and gets its gradient;
            any other stays a constant. Or a tuple or dict of such, positions and strain of a crystal for example, in
            which whatever is no tensor of floats is passed on as it is.
        loss: a function of (outputs, score) that returns the scalar to differentiate; the score is built as y is, with
            None for what is no tensor of floats. A further parameter named ``y`` gets the samples that are
            differentiated, which a Laplacian needs. Then layer, batch and instance normalization run as group
            normalization, for torch's third derivatives of them are wrong or refused.
        args, kwargs: what else the network takes: classes, times, indices of atoms.
        log_density: a function from the outputs to log-densities of any shape, of whose sum the gradient is the score;
            for a score of each sample, a sample must not count in the densities of others. It, too, may have a
            parameter ``y``. By default outputs [B] themselves, or :func:`cdn_kernels.logsumexp` of outputs [B, C].
        scored: how many samples have a score, the first ones; None for all. The others go through the forward and the
            last sweep only, in operations of the library, and in others as if they had a score, of which nothing is
            read. For a tensor y, and outputs [B, ...] of a network that computes every sample for itself; log_density
            then gets the outputs of those samples, and the score is of these.
        scaled: that the loss carries a factor, which the caller takes out of ``.grad``. float16 is refused without:
            gradients of log-densities go beyond its range, which ends at 65504, or vanish below 6e-8. Parameters are
            searched for it at the first step of a network and at every 50th.
        impl: what runs the library's operations inside the network, where these leave it open: "auto", "reference"
            (then torch's convolutions, too, are left to its double backward) or "cpu".

    Returns:
        (loss, outputs, score), detached; the graph is gone. Grad mode is left as found, and may be off.

    Raises:
        TypeError: network, loss or log_density cannot be called, or y or the loss is no tensor of floats.
        ValueError: outputs of another shape without log_density, a loss that is no scalar, or one of them does not
            depend on its input through differentiable operations; float16 without scaling.
        RuntimeError: the chosen impl cannot run here, or a torch.func transform is active.

    Source: Vincent, "A connection between score matching and denoising autoencoders", 2011; docs/derivations.md.
    """
    floats = _floats(y) if isinstance(y, (Tensor, tuple, dict)) else []
    _check(network, y, floats, loss, log_density, impl)
    scored = _checked_count(scored, y)
    device = "cpu" if floats[0].is_cpu else floats[0].device.type  # its name is slower to make
    module = _module_of(network)
    known = _known(module)
    if not scaled:
        _check_range(floats, device, known.has_halves(module))
    density = log_density or _default_density
    # For the backward passes every tensor is in its dtype: autocast could only round what was kept in full precision.
    rounded = torch.is_autocast_enabled(device)
    as_stored = torch.autocast(device, enabled=False) if rounded else nullcontext()
    # What a function calls is not known.
    third_order = _takes_y(loss, 2) and (module is None or has_norms(module))
    norms = AnyOrderNorms() if third_order else nullcontext()
    watch = None if impl == "reference" else _watch(known, floats)
    watched = nullcontext() if watch is None else watch.functions
    # Checkpoints run attention again in the backward passes, so these are in that block, too.
    with using(impl), _recorded(), plain_attention, norms, SharedFilters():
        y = tree_map(_differentiable, y)
        if scored is not None and isinstance(y, Tensor):
            y = filled(y)
        leaves = _floats(y)
        with phase("forward"), watched:
            places = y if isinstance(y, tuple) else (y,)
            outputs = network(*places, *args, **(kwargs or {}))
            value = _call_with(density, y, outputs if scored is None else _first_outputs(outputs, len(y), scored))
        with phase("score"), as_stored:
            score = _scores(y, iter(reference.input_gradients("score_matching_step", value, leaves, create_graph=True)))
            if scored is not None:
                score = leading(score, scored)
        # Critics are called in their loss, too. What gains is learned for modules, and functions are watched ever anew.
        with nullcontext() if module is None else watched:
            total = _call_with(loss, y, outputs, score)
        if watch is not None:
            watch.learn(network)
        _check_loss(total)
        with phase("backward"), as_stored:
            _accumulate(total, [leaf for leaf, given in zip(leaves, floats) if leaf is not given])
    return Step(total.detach(), detached(outputs), detached(score))


class first_order:
    """Let second derivatives of torch's convolutions consist of first-order convolutions, within a ``with`` block.

    For models that differentiate inside their own forward, such as force fields: their forward goes into the block, and
    ``loss.backward()`` may follow after it. Convolutions run in the library's kernels where these are faster; others
    that are large, or depthwise, by torch's, with derivatives of the first order; and small ones as ever, which lose
    more in Python than they gain. On CPUs large SiLU, ELU, GELU, softmax, group, layer and batch normalization, this in
    training, run in the library's passes, one a sweep. A warning names, once a network, convolutions that the library
    could take over in another form.
    Attention runs as products and that softmax, or with a mask, dropout or 16 bits, or if it is small, by torch's plain
    implementation, for the fused ones cannot be differentiated twice; that holds for all threads, as torch's choice
    does. Calls of this thread are seen, and nothing is patched.

    Args:
        network: the model, if known. Its calls are watched no longer, once a block has seen too few that gain: to watch
            costs some microseconds a call of any function of torch. Leave it out where images become larger later.

    Limitations: torch.utils.checkpoint around attention fails, for it runs that again in the backward pass, unless that
    is in the block, too, or all is within ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``. Other layers inside it
    are left to torch; :func:`cdn_kernels.recomputed` keeps less, and takes them over.
    """

    __slots__ = ("_network", "_watched")

    def __init__(self, network: nn.Module | None = None) -> None:
        self._network = network

    def __enter__(self) -> None:
        self._watched = _watch(_known(_module_of(self._network)), ())
        plain_attention.__enter__()
        if self._watched is not None:
            self._watched.functions.__enter__()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        watched = self._watched
        if watched is not None:
            watched.functions.__exit__(kind, *error)
        plain_attention.__exit__()
        if watched is not None and kind is None:
            watched.learn(self._network)


def _recorded() -> AbstractContextManager[Any]:
    """Return a context in which autograd records: none if it does, for every operation in one costs a little."""
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        return nullcontext()
    return _in_grad_mode()


@contextmanager
def _in_grad_mode() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


# At every how many steps all modules are asked for their dtype, which takes a hundred microseconds of large networks.
_STEPS_A_SEARCH = 50


class _Known:
    """What steps have learned of a network.

    Attributes:
        without: circumstances in which it is not watched, as too few layers of it gain; None if it has none that may.
    """

    def __init__(self, network: nn.Module | None) -> None:
        self.without: set[Any] | None = set() if network is None or may_gain(network) else None
        self._halves, self._steps = False, 0

    def has_halves(self, network: nn.Module | None) -> bool:
        """Tell whether the network had parameters in float16 when they were searched last; ever anew if it had some."""
        if network is not None and (self._halves or self._steps % _STEPS_A_SEARCH == 0):
            self._halves = _has_halves(network)
        self._steps += 1
        return self._halves


_networks: "weakref.WeakKeyDictionary[nn.Module, _Known]" = weakref.WeakKeyDictionary()


def _known(network: nn.Module | None) -> _Known:
    """Return what is known of a network, nothing yet of one that is no module."""
    if network is None:
        return _Known(None)
    known = _networks.get(network)
    if known is None:
        known = _networks[network] = _Known(network)
    return known


_MOST_CIRCUMSTANCES = 1000


class _Watch(NamedTuple):
    """Watching the calls of a network, whose layers are taken over where that gains.

    Attributes:
        functions: the block within which calls are seen.
        without: circumstances in which the network is not watched, as too few layers gain.
        circumstances: those of this watch.
    """

    functions: FirstOrderFunctions
    without: set[Any]
    circumstances: tuple[Any, ...]

    def learn(self, network: object) -> None:
        """Warn of layers that could be replaced, and note if too few gained."""
        if self.functions.filters:
            _warn_foreign(network, self.functions.filters)
        if not self.functions.pays and len(self.without) < _MOST_CIRCUMSTANCES:
            self.without.add(self.circumstances)


def _watch(known: _Known, samples: Iterable[Tensor]) -> _Watch | None:
    """Return a watch of a network; None if it is known that nothing of it gains."""
    if known.without is None:
        return None
    circumstances = torch_functions.CHOICE, *map(_form, samples)
    return None if circumstances in known.without else _Watch(FirstOrderFunctions(), known.without, circumstances)


def _module_of(network: object) -> nn.Module | None:
    """Return a module that is the network, or that it is a method of."""
    owner = network if isinstance(network, nn.Module) else getattr(network, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _form(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride() if x.layout == torch.strided else None, x.dtype, x.device


def _differentiable(x: Tensor) -> Tensor:
    return reference.differentiable(x, keep=True) if x.is_floating_point() else x


def _checked_count(scored: object, y: Samples) -> int | None:
    """Return how many samples have a score, None for all of them."""
    if scored is None:
        return None
    if not isinstance(y, Tensor) or isinstance(scored, bool) or not isinstance(scored, int):
        raise TypeError(
            "score_matching_step: scored must be a number of samples of a tensor y, got "
            f"{scored!r} and {'a tensor' if isinstance(y, Tensor) else type(y).__name__}"
        )
    if not 0 < scored <= len(y):
        raise ValueError(f"score_matching_step: scored must be in [1, {len(y)}], the samples of y, got {scored}")
    return scored if scored < len(y) else None


def _first_outputs(outputs: object, batch: int, count: int) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != (batch,):
        got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"score_matching_step: with scored, network must return a tensor [{batch}, ...], got {got}")
    return leading(outputs, count)


def _floats(tree: Any) -> list[Tensor]:
    return [t for t in ([tree] if isinstance(tree, Tensor) else tensors_in(tree)) if t.is_floating_point()]


def _scores(tree: Any, gradients: Iterator[Tensor]) -> Any:
    """Return the gradients by samples, built as these are."""
    if isinstance(tree, Tensor):
        return next(gradients) if tree.is_floating_point() else None
    if isinstance(tree, dict):
        return {key: _scores(value, gradients) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return rebuilt(tree, [_scores(value, gradients) for value in tree])
    return None


def _call_with(function: Callable[..., Any], y: Samples, *arguments: Any) -> Any:
    """Call a function, with y too if it has a further parameter of that name."""
    return function(*arguments, y=y) if _takes_y(function, len(arguments)) else function(*arguments)


def _takes_y(function: Callable[..., Any], given: int) -> bool:
    if isinstance(function, FunctionType) and not hasattr(function, "__wrapped__"):  # most, and at once
        code = function.__code__
        return "y" in code.co_varnames[given : code.co_argcount + code.co_kwonlyargcount]
    try:
        names = list(inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters)
    except (TypeError, ValueError):  # of builtin functions nothing is known
        return False
    return "y" in names[given:]


# Up to so many numbers, gradients by samples that nobody asked for cost less than the search for all other leaves.
_MOST_UNASKED = 1e5


def _accumulate(total: Tensor, hidden: Sequence[Tensor]) -> None:
    """Run the backward pass to all leaves; the hidden ones, which nobody else has seen, count only if that is cheap."""
    if sum(leaf.numel() for leaf in hidden) <= _MOST_UNASKED:
        total.backward()
        return
    known = {id(leaf) for leaf in hidden}
    leaves = [leaf for leaf in graph_leaves(total) if id(leaf) not in known]
    if leaves:
        total.backward(inputs=leaves)


def _default_density(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor) and outputs.dim() in (1, 2):
        return outputs if outputs.dim() == 1 else reference.logsumexp(outputs)
    got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ValueError(
        f"score_matching_step: without log_density, network must return log-densities [B] or logits [B, C], got {got}"
    )


def _check(network: object, y: object, floats: Sequence[Tensor], loss: object, log_density: object, impl: str) -> None:
    check_impl(impl)
    for name, function in (("network", network), ("loss", loss), ("log_density", log_density)):
        if not callable(function) and not (name == "log_density" and function is None):
            raise TypeError(
                f"score_matching_step: {name} must be a function or a module, got {type(function).__name__}"
            )
    if not floats:
        raise TypeError(
            "score_matching_step: y must be a tensor of floats, or a tuple or dict that holds some, got "
            f"{y.dtype if isinstance(y, Tensor) else type(y).__name__}"
        )
    if isinstance(y, Tensor) and y.dim() == 0:
        raise ValueError("score_matching_step: y must be samples [B, ...], got a 0-d tensor")
    if transformed():
        raise RuntimeError(
            "score_matching_step: gradients cannot be accumulated under torch.func transforms or "
            "forward-mode differentiation; use cdn_kernels.score"
        )


def _check_range(samples: Sequence[Tensor], device: str, has_halves: bool) -> None:
    rounded = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    if rounded or any(t.dtype == torch.float16 for t in samples) or has_halves:
        raise ValueError(
            "score_matching_step: in float16, whose range ends at 65504, gradients of log-densities "
            "overflow or vanish; use bfloat16, or scale the loss, take the factor out of .grad and pass "
            "scaled=True"
        )


def _has_halves(network: nn.Module) -> bool:
    """Tell whether a module has parameters in float16, at a tenth of the costs of its method."""
    modules: list[nn.Module | None] = [network]
    seen: set[int] = set()
    while modules:
        module = modules.pop()
        if module is not None and id(module) not in seen:
            seen.add(id(module))
            for p in module._parameters.values():
                if p is not None and p.dtype == torch.float16:
                    return True
            modules += module._modules.values()
    return False


def _check_loss(total: object) -> None:
    if not isinstance(total, Tensor) or not total.is_floating_point():
        got = total.dtype if isinstance(total, Tensor) else type(total).__name__
        raise TypeError(f"score_matching_step: loss must return a tensor of floats, got {got}")
    if total.numel() != 1:
        raise ValueError(f"score_matching_step: loss must return a scalar, got {list(total.shape)}")
    if not total.requires_grad:
        raise ValueError("score_matching_step: loss must depend on outputs or score through differentiable operations")


_warned: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
_said: set[str] = set()


def _warn_foreign(network: object, filters: Iterable[Tensor]) -> None:
    """Warn, once a network, of convolutions that the library could take over."""
    owners = [module for module in _modules_of(network) if module not in _warned]
    if not owners and any(True for _ in _modules_of(network)):
        return
    _warned.update(owners)
    names = _names(owners, filters)
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    message = (
        f"score_matching_step runs {listed} in torch's kernels; channels last they may run in the library's "
        "(network.to(memory_format=torch.channels_last), and y too), and so may cdn_kernels.ConvGELU or conv2d"
    )
    if owners or message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=_stack_level())


def _modules_of(network: object) -> Iterator[nn.Module]:
    """Yield the network, or the modules that a function is a method of or refers to."""
    cells, defaults = (getattr(network, name, None) or () for name in ("__closure__", "__defaults__"))
    for found in (network, getattr(network, "__self__", None), *map(_content, cells), *defaults):
        if isinstance(found, nn.Module):
            yield found


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _names(owners: Iterable[nn.Module], filters: Iterable[Tensor]) -> list[str]:
    """Describe convolutions by the modules that own their filters, or by the shapes of the filters."""
    modules = ((name, module) for owner in owners for name, module in owner.named_modules())
    named = {id(p): f"{type(m).__name__} {name!r}" for name, m in modules for p in m.parameters(recurse=False)}
    return list(dict.fromkeys(named.get(id(f), f"a convolution with filters {list(f.shape)}") for f in filters))


def _stack_level() -> int:
    """Return how far up the caller of the library stands."""
    for level, frame in enumerate(inspect.stack(0), 0):
        if not frame.frame.f_globals.get("__name__", "").startswith(("cdn_kernels", "contextlib")):
            return level
    return 1
