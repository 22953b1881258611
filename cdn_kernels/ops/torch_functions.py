"""Run torch's own layers by operations with derivatives of their own, wherever a network calls them and that gains.

Convolutions of two dimensions for which the library has faster kernels run in these; others, where they are large or
depthwise, as the three maps of :mod:`cdn_kernels.ops.any_convolution`. Group, layer and batch normalization, SiLU,
ELU, GELU and softmax, that of attention too, run in the library's passes. The rest is left to torch.
"""

import math
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cuda
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from cdn_kernels import reference
from cdn_kernels.backends.interface import TYPES
from cdn_kernels.ops import convolve
from cdn_kernels.ops.activation import elu, gelu, silu
from cdn_kernels.ops.any_convolution import Options, convolution, options_of
from cdn_kernels.ops.common import resolve_untransformed
from cdn_kernels.ops.conv import dtype_for
from cdn_kernels.ops.filters import as_filters
from cdn_kernels.ops.group_norm import batch_norm, group_norm
from cdn_kernels.ops.softmax import softmax
from cdn_kernels.torch_private import without_python
from cdn_kernels.transforms import transformed

CONVOLUTIONS = {getattr(torch, f"conv{transposed}{n}d") for transposed in ("", "_transpose") for n in (1, 2, 3)}
# Which convolutions are taken over on a CPU: "measured" for those that were measured to gain, or "all".
CHOICE = "measured"
# From how many multiplications on they gain: in the library's kernels (one thread of a Xeon with AVX-512), and by
# torch's own maps, depthwise ones of small filters before others (of a Zen 5).
FEWEST_FOR_KERNELS, FEWEST, FEWEST_DEPTHWISE = 2e7, 1e8, 3e5
LARGEST_DEPTHWISE = 9
# Kernels that have to copy images to channels last and back take so many times as many (two threads of that Xeon).
TIMES_WITH_COPIES = 3
# torch's own maps gain of fewer multiplications, too, from so many numbers on, those of images and results together:
# its double backward stores them in another order, and takes them for filters. Volumes do not (one and two threads).
FEWEST_NUMBERS = 4e5
# From how many elements on the library's passes gain over what torch makes of two derivatives (one thread of a Xeon
# with AVX-512).
FEWEST_ELEMENTS = {
    "silu": 1 << 17,
    "elu": 1 << 17,
    "gelu": 1 << 18,
    "group_norm": 1 << 16,
    "layer_norm": 1 << 17,
    "batch_norm": 1 << 16,
    "softmax": 1 << 19,
}
FEWEST_ELEMENTS["scaled_dot_product_attention"] = FEWEST_ELEMENTS["softmax"]  # of its products
# How many calls of functions may be watched on a CPU for a layer of the smallest size that gains: to watch one costs
# some 8 microseconds, and such a layer gains some hundred.
CALLS_A_LAYER = 25


class FirstOrderFunctions(TorchFunctionMode):
    """Within a ``with`` block, run torch's layers by operations with derivatives of their own, where that gains.

    Nothing is patched: calls are intercepted in this thread, as long as the block lasts. Calls of the reference stay
    what they are, and so does what runs under torch.func transforms.

    Attributes:
        filters: of the convolutions that ran in torch's kernels, though the library has an operation for their kind and
            they are large enough, in order, as they were given.
    """

    _inside = threading.local()

    def __init__(self) -> None:
        super().__init__()
        self.filters: list[Tensor] = []
        self._calls = 0
        self._layers = 0.0  # taken over, each as many as it is larger than the smallest that gains

    @property
    def gained(self) -> bool:
        """Tell whether anything was taken over."""
        return self._layers > 0

    @property
    def pays(self) -> bool:
        """Tell whether what that gains is more than it costs to watch all calls."""
        return self._calls <= CALLS_A_LAYER * self._layers or (self.gained and CHOICE == "all")

    @classmethod
    def active(cls) -> bool:
        """Tell whether this thread is in such a block."""
        return getattr(cls._inside, "blocks", 0) > 0

    def __enter__(self) -> "FirstOrderFunctions":
        self._inside.blocks = getattr(self._inside, "blocks", 0) + 1
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self._inside.blocks -= 1
        super().__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self._calls += 1
        if func in CONVOLUTIONS and sys._getframe(1).f_globals is not vars(reference):
            return self._convolution(func, *args, **(kwargs or {}))
        if func in PASSES and sys._getframe(1).f_globals is not vars(reference):
            own = PASSES[func](*args, **(kwargs or {}))
            if own is not None:
                self._layers += own.numel() / FEWEST_ELEMENTS[func.__name__]
                return own
        return func(*args, **kwargs) if kwargs else func(*args)

    def _convolution(
        self,
        func: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *options: Any,
        **named: Any,
    ) -> Tensor:
        if _is_tiny(input, weight):
            return func(input, weight, bias, *options, **named)
        tensors = [input, weight] if bias is None else [input, weight, bias]
        if transformed() or not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors) or _are_packed():
            return func(input, weight, bias, *options, **named)
        kind = options_of(func, input, weight, *options, **named)
        if kind is None:
            return func(input, weight, bias, *options, **named)
        products = _products(input, weight, kind)
        if _has_operation(input, weight, kind) and _is_worth_it(input, products >= FEWEST_FOR_KERNELS):
            copied = not convolve.results_are_channels_last(input, weight)
            fewest = FEWEST_FOR_KERNELS * (TIMES_WITH_COPIES if copied else 1)
            large = _is_worth_it(input, products >= fewest)
            own = _of_our_own(input, weight, bias, kind.stride[0]) if large else None
            if own is not None:
                self._layers += _times_smallest(input, products / fewest)
                return own
            self.filters.append(weight)
        gain = _gain(input, weight, kind, products)
        if not _is_worth_it(input, gain >= 1):
            return func(input, weight, bias, *options, **named)
        self._layers += _times_smallest(input, gain)
        device = input.device.type
        if torch.is_autocast_enabled(device):
            tensors = [t.to(torch.get_autocast_dtype(device)) for t in tensors]
        x, filters, *added = tensors
        return convolution(x, filters, added[0] if added else None, kind)


def _silu(input: Tensor, inplace: bool = False) -> Tensor | None:
    """Apply SiLU in the library's passes; None where torch is to do it."""
    return silu(input) if not inplace and _is_for_passes("silu", "silu", input) else None


def _elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor | None:
    """Apply ELU, likewise."""
    return elu(input) if alpha == 1 and not inplace and _is_for_passes("elu", "elu", input) else None


def _gelu(input: Tensor, *, approximate: str = "none") -> Tensor | None:
    """Apply the exact GELU, likewise."""
    return gelu(input) if approximate == "none" and _is_for_passes("gelu", "gelu", input) else None


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor | None:
    """Normalize groups of channels, likewise."""
    if weight is None or input.dim() < 3 or eps <= 0:
        return None
    if 0 in input.shape[1:] or input.shape[1] % num_groups or not _fit(input, input.shape[1:2], weight, bias):
        return None
    if not _is_for_passes("group_norm", "group_norm", input, weight, bias):
        return None
    if input.dim() == 4:
        return group_norm(input, num_groups, weight, bias, eps)
    images = input.reshape(*input.shape[:2], -1, 1)
    return group_norm(images, num_groups, weight, bias, eps).view(input.shape)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """Normalize the last dimensions, likewise: as one group of as many channels as a row of them has numbers."""
    shape = torch.Size(normalized_shape)
    if not 0 < len(shape) <= input.dim() or input.shape[-len(shape) :] != shape or 0 in shape or eps <= 0:
        return None
    if not _fit(input, shape, weight, bias) or not _is_for_passes("layer_norm", "group_norm", input, weight, bias):
        return None
    width = shape.numel()
    gain = input.new_ones(width) if weight is None else weight.reshape(width)
    rows = group_norm(input.reshape(-1, width, 1, 1), 1, gain, None if bias is None else bias.reshape(width), eps)
    return rows.view(input.shape)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Normalize channels over all samples, likewise."""
    if not training or input.dim() < 2 or 0 in input.shape or eps <= 0:
        return None
    count, pixels = input.numel() // input.shape[1], input.movedim(1, -1)
    if count < 2:  # for torch to explain
        return None
    channels, running = input.shape[1:2], (running_mean, running_var)
    if not _fit(input, channels, weight, bias, *running):
        return None
    if not _is_for_passes("batch_norm", "group_norm", input, weight, bias):
        return None
    gain = input.new_ones(channels) if weight is None else weight
    last = pixels.is_contiguous()
    images = input if input.dim() == 4 else pixels.view(count, *channels, 1, 1) if last else input.flatten(2)[..., None]
    z, mean, variance = batch_norm(images, gain, bias, eps)
    with torch.no_grad():
        for average, found in zip(running, (mean, variance * (count / (count - 1)))):
            if average is not None:
                average.lerp_(found.to(average.dtype), momentum)
    return z if input.dim() == 4 else z.view(pixels.shape).movedim(-1, 1) if last else z.reshape(input.shape)


def _softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor | None:
    """Take the softmax over the last dimension, likewise."""
    if not input.dim() or dim not in (-1, input.dim() - 1) or dtype not in (None, input.dtype):
        return None
    return softmax(input) if _is_for_passes("softmax", "softmax", input) else None


def _softmax_of(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor | None:
    """Do that where it is called without a level of the stack."""
    return _softmax(input, dim, dtype=dtype)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Compute attention without masks as torch's plain implementation does, with the softmax of the library.

    That of torch.nn.MultiheadAttention is not seen, as that is a function of torch itself.
    """
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or query.dim() < 2 or 0 in query.shape:
        return None
    # torch's takes 16 bits to float32, and autocast the other way.
    if query.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(query.device.type):
        return None
    if key.dim() != query.dim() or key.shape[:-2] != query.shape[:-2] or key.shape[-1:] != query.shape[-1:]:
        return None
    if value.shape[:-1] != key.shape[:-1] or not query.dtype == key.dtype == value.dtype:  # for torch to explain
        return None
    size = query.shape[:-1].numel() * key.shape[-2]
    if not _is_for_passes("softmax", "softmax", query, key, value, size=size):
        return None
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return softmax((query * factor) @ key.transpose(-2, -1)) @ value


def _fit(x: Tensor, shape: torch.Size, *parameters: Tensor | None) -> bool:
    """Tell whether gain and bias of a norm have a shape and a type that it takes, or torch is to explain what not."""
    return all(p is None or (p.shape == shape and p.dtype in (x.dtype, torch.float32)) for p in parameters)


# What takes the place of torch's functions.
PASSES: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.silu: _silu,
    F.elu: _elu,
    F.gelu: _gelu,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.softmax: _softmax,
    torch.softmax: _softmax_of,
    Tensor.softmax: _softmax_of,
    F.scaled_dot_product_attention: _attention,
}
# The modules that call them.
_MODULES = (
    *(nn.SiLU, nn.ELU, nn.GELU, nn.Softmax),
    *(nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
)


def _is_for_passes(
    function: str, operation: str, x: Tensor, *parameters: Tensor | None, size: int | None = None
) -> bool:
    """Tell whether an operation on a CPU takes the place of a function of torch that is differentiated.

    Args:
        size: how many elements its passes go over; None for those of x.
    """
    large = (x.numel() if size is None else size) >= FEWEST_ELEMENTS[function]
    if x.device.type != "cpu" or x.dtype not in TYPES or not _is_worth_it(x, large):
        return False
    if transformed() or not torch.is_grad_enabled():
        return False
    if not any(t is not None and t.requires_grad for t in (x, *parameters)) or _are_packed():
        return False
    return resolve_untransformed(operation, "auto", x) != "reference"


def _are_packed() -> bool:
    """Tell whether hooks pack what is saved for backward passes.

    Those of torch.utils.checkpoint run layers again when it is wanted, where nobody intercepts them, and refuse what is
    saved otherwise than before.
    """
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("never shown"):
            return False
    except RuntimeError:  # it refuses where there are some
        return True


def may_gain(network: nn.Module) -> bool:
    """Tell whether a network has what is taken over: filters, of three or more dimensions, or a module of a pass."""
    if any(is_lazy(p) or p.dim() > 2 for p in network.parameters()):
        return True
    return any(isinstance(module, _MODULES) for module in network.modules())


# torch's kernels of attention: whether each is on, its switch, and whether it has second derivatives.
_ATTENTION = [
    (without_python(cuda.flash_sdp_enabled), without_python(cuda.enable_flash_sdp), False),
    (without_python(cuda.math_sdp_enabled), without_python(cuda.enable_math_sdp), True),
]
if cuda.is_built():  # those of GPUs alone
    _ATTENTION += [
        (without_python(cuda.mem_efficient_sdp_enabled), without_python(cuda.enable_mem_efficient_sdp), False),
        (without_python(cuda.cudnn_sdp_enabled), without_python(cuda.enable_cudnn_sdp), False),
    ]


class _PlainAttention:
    """Within a ``with`` block, run attention by torch's plain implementation, which can be differentiated twice.

    torch knows one choice for all threads; the last of those that are in such a block restores it.
    torch.nn.attention.sdpa_kernel does the same at ten times the cost. A function of Python takes some ten microseconds
    once a step has emptied the caches, so there are few here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._changed: list[tuple[Callable[[bool], None], bool]] = []  # switches, and where they stood

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._changed = [(switch, not twice) for is_on, switch, twice in _ATTENTION if is_on() != twice]
                for switch, on in self._changed:
                    switch(not on)
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                for switch, on in self._changed:
                    switch(on)


plain_attention = _PlainAttention()


def _is_tiny(x: Tensor, weight: Tensor) -> bool:
    """Tell, in a moment, of most convolutions that are too small for everything that they are."""
    on_cpus = x.numel() * weight.numel() >= FEWEST_DEPTHWISE * x.shape[1] if x.dim() == weight.dim() else True
    return not _is_worth_it(x, on_cpus)


def _products(x: Tensor, weight: Tensor, kind: Options) -> float:
    """Return how many multiplications a convolution takes, up to what lies over the borders."""
    return math.prod(weight.shape[1:]) * (x.numel() if kind.transposed else _results(x, weight, kind))


def _results(x: Tensor, weight: Tensor, kind: Options) -> float:
    """Return how many numbers a convolution returns, without those that borders add or take."""
    pixels, steps = x.shape[0] * math.prod(x.shape[2:]), math.prod(kind.stride)
    return pixels * steps * weight.shape[1] * kind.groups if kind.transposed else pixels / steps * weight.shape[0]


def _times_smallest(x: Tensor, on_cpus: float) -> float:
    """Return for how many of the smallest convolutions that gain one counts: on GPUs for any number."""
    return on_cpus if x.device.type == "cpu" else math.inf


def _is_worth_it(x: Tensor, on_cpus: bool) -> bool:
    """Tell whether a convolution is taken over, which was measured on CPUs only."""
    return on_cpus or x.device.type != "cpu" or CHOICE == "all"


def _is_depthwise(x: Tensor, kind: Options) -> bool:
    return kind.groups == x.shape[1] > 1


def _gain(x: Tensor, weight: Tensor, kind: Options, products: float) -> float:
    """Return how many times as large as the smallest that gains by derivatives of the first order, on a CPU, this is.

    Small ones lose more in Python than they gain. 1x1 filters have no others, and volumes of few images are torch's
    slowest.
    """
    size = math.prod(weight.shape[2:])
    if _is_depthwise(x, kind):
        return products / FEWEST_DEPTHWISE if size <= LARGEST_DEPTHWISE else 0
    if size == 1 or (weight.dim() == 5 and len(x) < 4):
        return 0
    numbers = x.numel() + _results(x, weight, kind) if weight.dim() < 5 else 0
    return max(products / FEWEST, numbers / FEWEST_NUMBERS)


def _has_operation(x: Tensor, weight: Tensor, kind: Options) -> bool:
    """Tell whether a convolution is of the kind that the library's operation is."""
    if x.dim() != 4 or kind.transposed or kind.groups != 1 or kind.dilation != [1, 1] or x.dtype not in TYPES:
        return False
    size, other = weight.shape[2:]
    if size % 2 == 0 or other != size or kind.padding != [size // 2] * 2 or kind.stride[0] != kind.stride[1]:
        return False
    return x.device == weight.device and x.shape[1] == weight.shape[1]  # for torch to explain


def _of_our_own(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor | None:
    """Run conv2d by the library's operation where all its maps have kernels that are faster, else return None."""
    backend = resolve_untransformed("conv2d", "auto", x)
    if backend == "reference":
        return None
    dtype = dtype_for(x, weight=weight)
    x = x.to(dtype)
    if not convolve.all_run_here(x, weight, stride, backend):
        return None
    # Gradients and tangents come in any layout, and filters decide for them.
    filters = as_filters(weight, dtype, channels_last=convolve.asks_for_channels_last(x))
    u = torch.ops.cdn_kernels.conv2d(x, filters, stride, backend)
    return u if bias is None else u.add_(bias.to(u.dtype).view(1, -1, 1, 1))
