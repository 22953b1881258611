"""Define every operation of the library in plain PyTorch: the specification of the fast backends.

Each function works in any floating dtype, on any device, in any memory layout, and can be differentiated to any
order. Values of half precision are stored in half precision and computed in float32, as the kernels do. The other
backends are tested against this file and never import it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.types import Device

from cdn_kernels.floors import square_floor
from cdn_kernels.noise import Noise, NoiseLevels, Sigma, check_level
from cdn_kernels.philox import MASK, key_words, philox4x32, position_words, random_words
from cdn_kernels.torch_faults import strided_gradient_may_crash
from cdn_kernels.transforms import transformed

Output = TypeVar("Output")
Pullback = Callable[[Tensor], tuple[Tensor]]  # from a gradient by the value to that by the input

WITHOUT_FLOAT64 = {"mps"}  # types of devices

# ----------------------------------------------------------------------------------------------------------------
# Convolution, GELU and group normalization
# ----------------------------------------------------------------------------------------------------------------


def conv2d(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolve without bias and with "same" padding; arguments and result as for :func:`conv2d_gelu`."""
    if x.device.type == "cpu" and strided_gradient_may_crash((x.shape, weight.shape), stride):
        x, stride = x[:, :, ::stride, ::stride], 1
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def gelu(u: Tensor) -> Tensor:
    """Apply the exact GELU, ``u Phi(u)`` with Phi the distribution function of a standard normal."""
    return F.gelu(u)


def silu(u: Tensor) -> Tensor:
    """Apply SiLU, ``u sigmoid(u)``."""
    return F.silu(u)


def elu(u: Tensor) -> Tensor:
    """Apply ELU, u for u > 0 and ``exp(u) - 1`` otherwise."""
    return F.elu(u)


def softmax(x: Tensor) -> Tensor:
    """Return the softmax over the last dimension."""
    return x.softmax(-1)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalize groups of channels of x [B, C, H, W]; arguments and result as for torch.nn.functional.group_norm."""
    dtype = compute_dtype(x.dtype)
    bias = None if bias is None else bias.to(dtype)
    # F.group_norm refuses a batch of one pixel.
    return torch.group_norm(x.to(dtype), groups, weight.to(dtype), bias, eps).to(x.dtype)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalize every channel of x [B, C, ...] over all samples, as groups of one sample.

    torch's third derivatives of group normalization are right, and those of its batch normalization are not.
    """
    channels = x.transpose(0, 1)
    z = group_norm(channels.reshape(1, len(channels), -1), len(channels), weight, bias, eps)
    return z.view(channels.shape).transpose(0, 1)


def conv2d_gelu(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolve without bias, "same" padding, and apply the exact GELU.

    Args:
        x: images [B, I, H, W].
        weight: filters [O, I, k, k], k odd; zero padding of k // 2 on each side.
        stride: 1 or more.

    Returns:
        ``u Phi(u)`` with ``u = weight * x``, [B, O, ceil(H / stride), ceil(W / stride)].
    """
    return gelu(conv2d(x, weight, stride))


def gelu_group_norm(
    x: Tensor,
    weight: Tensor,
    groups: int,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-3,
    scale_preserving: bool = True,
) -> Tensor:
    """Add a residual, apply GELU, and normalize groups of channels, without bias.

    With ``b = gelu(x + residual)``, and over one group of one sample ``c = b - mean b``, ``V = mean c^2``, the plain
    norm is ``weight c / sqrt(V + eps)``. The scale-preserving one multiplies by the deviation common to the sample
    and takes eps relative to it: with ``T`` the mean of V over the groups of the sample, the result is
    ``weight c sqrt(T) / sqrt(V + eps T)``. As a function N of b it satisfies ``N(a b) = a N(b)`` for every a > 0, so
    a network built from it still sees the noise level of its input. A sample whose T is at its floor or below
    (:func:`cdn_kernels.floors.square_floor`) gives 0, with derivatives 0 of every order.

    Args:
        x: [B, C, H, W], C divisible by groups.
        weight: gain [C].
        groups: number of groups of channels.
        residual: None or [B, C, H, W]; the sum is rounded to the dtype of x before anything else.
        eps: regularization of the variance, absolute (plain) or relative to T (scale-preserving).
        scale_preserving: which of the two norms.

    Returns:
        [B, C, H, W] in the dtype of x; statistics are taken in float32, or in float64 for float64 input.
    """
    v = x if residual is None else x + residual
    b = F.gelu(v.to(compute_dtype(v.dtype)))
    gain = weight.to(b.dtype)
    if not scale_preserving:
        return torch.group_norm(b, groups, gain, None, eps).to(v.dtype)
    grouped = b.unflatten(1, (groups, -1))
    # Differences from one value of each group, so that a constant group has a variance of exactly 0.
    shifted = grouped - grouped[:, :, :1, :1, :1].detach()
    centred = shifted - shifted.mean((2, 3, 4), keepdim=True)
    variance = centred.square().mean((2, 3, 4), keepdim=True)
    common = variance.mean(1, keepdim=True)
    alive = common > square_floor(common.dtype)
    relative = variance / torch.where(alive, common, 1.0)
    scale = torch.where(alive, (relative + eps).rsqrt(), 0.0)
    return (centred * (scale * gain.view(1, groups, -1, 1, 1))).flatten(1, 2).to(v.dtype)


# ----------------------------------------------------------------------------------------------------------------
# The head and the score
# ----------------------------------------------------------------------------------------------------------------


def channel_mean(h: Tensor) -> Tensor:
    """Average feature images [B, C, H, W] over pixels: [B, C], in float32 (float64 for float64)."""
    return h.to(compute_dtype(h.dtype)).mean((2, 3))


def energy(features: Iterable[Tensor], maps: Iterable[Tensor]) -> Tensor:
    """Sum the mean squares of linear maps of feature images: ``q = sum_l mean_pixels |A_l h_l|^2``.

    Args:
        features: list of [B, C_l, H_l, W_l].
        maps: list of 1x1 filters A_l [E_l, C_l, 1, 1].

    Returns:
        q [B], accumulated in float32 (float64 for float64).
    """
    terms = []
    for h, weight in zip(features, maps, strict=True):
        e = F.conv2d(h, weight)
        terms.append(e.to(compute_dtype(e.dtype)).square().sum(1).mean((1, 2)))
    return torch.stack(terms).sum(0)


def logsumexp(logits: Tensor) -> Tensor:
    """Compute ``log sum_c exp(logits_c)`` with derivatives that stay exact beside a large common offset.

    PyTorch's own backward is ``exp(logits - result)``, which sums to 1 only as well as the result is rounded. Logits
    that are log-densities of images reach thousands, where float32 rounds by 1e-4, and in second derivatives that error
    multiplies large terms that nearly cancel: parameter gradients of a GradResNet were off by two percent. Here the
    largest logit is taken out as a constant first, which changes no derivative of any order.

    Args:
        logits: [B, C].

    Returns:
        [B].
    """
    largest = logits.detach().amax(1, keepdim=True)
    offset = torch.where(largest.isfinite(), largest, 0)
    return (logits - offset).logsumexp(1) + offset[:, 0]


def cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, reduction: Literal["mean", "sum", "none"] = "mean"
) -> Tensor:
    """Compute the cross-entropy of classes from differences of logits, which a common offset does not touch.

    The weights that a loss gives to the logits, ``softmax - onehot``, sum to zero. PyTorch's do so only as well as
    softmax is rounded: within 2e-7 in float32, however small they are. Where the logits are log-densities, what is left
    multiplies the gradient of their common offset, the score, thousands of times larger than that of their differences:
    it decided 4 % of the input gradients of images that a GradResNet was sure of, in the median, and turned one of 256
    round (docs/derivations.md). Here the label's weight is minus the sum of the others, each to full relative
    precision, and so is the loss itself.

    Args:
        logits: [B, C].
        labels: the classes, int64 [B] in [0, C).
        label_smoothing: e in [0, 1]; the classes get the weights ``(1 - e) onehot + e / C``.
        reduction: "mean", "sum" or "none".

    Returns:
        ``log(1 + sum_{c != label} exp(z_c - z_label)) - e mean_c (z_c - z_label)``: a scalar, or [B] for "none"; in
        float32, or float64 for float64.

    Raises:
        ValueError: labels that are not one per row, or an unknown reduction.

    Limitations: classes have no weights, and no label stands for "ignore this one".
    """
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"cross_entropy: labels must be one class per row, [{len(logits)}], got {list(labels.shape)}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"cross_entropy: reduction must be mean, sum or none, got {reduction!r}")
    logits, index = logits.to(compute_dtype(logits.dtype)), labels[:, None]
    leads = logits - logits.gather(1, index)
    # Not -inf, of which second derivatives are nan where there is no other class.
    others = leads.scatter(1, index, torch.finfo(leads.dtype).min)
    # Beyond its threshold softplus is the identity: at 50 that is exact in float64, and exp does not overflow before.
    loss = F.softplus(logsumexp(others), threshold=50)
    if label_smoothing:
        loss = loss - label_smoothing * leads.mean(1)
    return loss if reduction == "none" else getattr(loss, reduction)()


def score(log_density: Callable[[Tensor], Tensor], y: Tensor, *, create_graph: bool = False) -> Tensor:
    """Differentiate a log-density with respect to its input: ``s(y) = grad_y log_density(y)``.

    Args:
        log_density: a function or module from samples [B, ...] to log-densities of any shape, which are summed: one
            for each sample, [B], or for each patch or group; a sample must not count in those of others.
        y: samples [B, ...].
        create_graph: keep the graph, so that the score can be differentiated again.

    Returns:
        s, the shape of y. The grad mode and ``y.requires_grad`` are left as found. Under torch.func transforms and
        forward-mode differentiation s is differentiated with all else, whatever ``create_graph``.

    Raises:
        TypeError: y, or what log_density returns, is no tensor of floats.
        ValueError: log_density does not depend on y differentiably.
    """
    if not y.is_floating_point():
        raise TypeError(f"score: y must be a tensor of floats, got {y.dtype}")
    with torch.inference_mode(False), torch.enable_grad():
        if transformed():
            return transformed_score("score", lambda y: (log_density(y), y), y)[0]
        y = differentiable(y, keep=create_graph)
        return input_gradient("score", log_density(y), y, create_graph=create_graph)


def transformed_score(
    name: str, function: Callable[[Tensor], tuple[Tensor, Output]], y: Tensor
) -> tuple[Tensor, Output]:
    """Return the score of a log-density, and what else its network gave, for transforms to differentiate.

    Args:
        name: of the function that raises ValueError.
        function: from samples y [B, ...] to (log-densities [B], outputs), which are tensors, or lists of these.
        y: the samples; batched, dual or both.
    """

    def density(y: Tensor) -> tuple[Tensor, Output]:
        value, outputs = function(y)
        _check_density(name, value)
        return value, outputs

    value, pull, outputs = cast("tuple[Tensor, Pullback, Output]", torch.func.vjp(density, y, has_aux=True))
    return pull(torch.ones_like(value))[0], outputs


def differentiable(y: Tensor, *, keep: bool) -> Tensor:
    """Return y as a tensor that requires grad: y itself if keep and it does, otherwise a leaf of its own."""
    y = recordable(y)
    return y if keep and y.requires_grad else y.detach().requires_grad_()


def recordable(x: Tensor) -> Tensor:
    """Return x, or a copy if it was made in inference mode, whose tensors autograd does not take."""
    return x.clone() if x.is_inference() else x


def input_gradient(name: str, value: Tensor, y: Tensor, *, create_graph: bool) -> Tensor:
    """Return the gradient by y of the sum of log-densities, or raise ValueError in the name of a function."""
    return input_gradients(name, value, [y], create_graph=create_graph)[0]


def input_gradients(name: str, value: Tensor, inputs: Sequence[Tensor], *, create_graph: bool) -> list[Tensor]:
    """Return the gradients by several inputs, zero for those that do not count, likewise; one of them must."""
    _check_density(name, value)
    found: Sequence[Tensor | None] = ()
    if value.requires_grad:
        found = torch.autograd.grad(value.sum(), inputs, create_graph=create_graph, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise ValueError(f"{name}: log_density does not depend on y through differentiable operations")
    return [torch.zeros_like(y) if gradient is None else gradient for y, gradient in zip(inputs, found)]


def _check_density(name: str, value: object) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: log_density must return a tensor of floats, got {got}")


# ----------------------------------------------------------------------------------------------------------------
# Noise, of the words of :mod:`cdn_kernels.philox`. A block of four words gives four normals. Of the stream of levels,
# an image takes two words of block 0, and the whole batch one word of block 1 at place 0.
# ----------------------------------------------------------------------------------------------------------------

NORMAL_STREAM, LEVEL_STREAM = 0, 1


def standard_normal(
    shape: Sequence[int], noise: Noise, dtype: torch.dtype = torch.float32, device: Device = None
) -> Tensor:
    """Draw standard normals by Box-Muller, four from each Philox block of an image.

    Args:
        shape: [B, ...]; element e of image i (in C order, whatever the layout) comes from word e % 4 of block e // 4.
        noise: the key, a :class:`Noise`.
        dtype: float64 draws in float64; everything else draws in float32 and rounds.
    """
    shape = torch.Size(shape)
    size = math.prod(shape[1:])
    words = random_words(shape[0], -(-size // 4), noise, NORMAL_STREAM, device)
    real = compute_dtype(dtype)
    # (w + 1/2) / 2^32 lies in (0, 1]: the conversion rounds once, the scaling is exact.
    radius = (words[..., 0::2].to(real) * 2.0**-32 + 2.0**-33).log().mul(-2).sqrt()
    # The angle 2 pi w / 2^32 = quarter pi/2 + rest, |rest| <= pi/4, is split in integers, where nothing is lost.
    turn = words[..., 1::2] + (1 << 29)
    quarter = (turn >> 30) & 3
    rest = ((turn & (1 << 30) - 1) - (1 << 29)).to(real) * (math.pi * 2.0**-31)
    cos, sin = rest.cos(), rest.sin()
    swap = quarter & 1 == 1
    first = torch.where(swap, sin, cos) * torch.where((quarter == 1) | (quarter == 2), -1.0, 1.0)
    second = torch.where(swap, cos, sin) * torch.where(quarter >= 2, -1.0, 1.0)
    normals = torch.stack((radius * first, radius * second), -1)
    return normals.flatten(1)[:, :size].reshape(shape).to(dtype)


def sample_sigma(
    batch: int, noise: Noise, levels: NoiseLevels, dtype: torch.dtype = torch.float32, device: Device = None
) -> Tensor:
    """Draw one noise level per image, [batch], from the images' own counters.

    The position in [low, high] comes from the first word, computed in float64 and rounded once, so every backend gets
    the same values. Which images stay clean says :func:`is_clean`, or, if they are independent, the second word, with
    the probability of the share.
    """
    drawn = random_words(batch, 1, noise, LEVEL_STREAM, device)[:, 0]
    words = in_float64(drawn)
    position = (words[:, 0] + 0.5) * 2.0**-32
    if levels.law == "log-uniform":
        sigma = (math.log(levels.low) + position * (math.log(levels.high) - math.log(levels.low))).exp()
    elif levels.law == "uniform":
        sigma = levels.low + position * (levels.high - levels.low)
    else:
        sigma = torch.full_like(position, levels.high)
    if levels.clean == "stratified":
        clean = is_clean(noise.placed(batch, drawn.device), noise, levels).to(words.device)
    else:
        clean = words[:, 1] < levels.clean_share * 2.0**32
    return torch.where(clean, 0.0, sigma).to(dtype).to(drawn.device)


def is_clean(places: Tensor, noise: Noise, levels: NoiseLevels) -> Tensor:
    """Tell which images of a batch stay clean by the stratified law.

    With the share in integers, ``S = round(2**32 clean_share)``, and u the first word of block 1 of the stream of
    levels at place 0, one for the whole batch, the image at place i is clean if ``(i S + u) mod 2**32 + S >= 2**32``:
    if a multiple of 2**32 lies in ``(i S + u, (i + 1) S + u]``. Since u is uniform, each place is clean with
    probability ``S / 2**32``; and n consecutive places, wherever they begin, hold ``n S / 2**32`` clean images, rounded
    up or down.

    Args:
        places: int64 [n].
        noise: the key, of which seed and offset count.
        levels: of which clean_share counts.

    Returns:
        bool [n].
    """
    share = clean_integer(levels)
    words = position_words(noise.position(places.device), LEVEL_STREAM)
    one, none = torch.ones_like(words[0]), torch.zeros_like(words[0])
    u = philox4x32((one, none, *words), key_words(noise))[0]
    # Only the low 32 bits of a product count, which wrapping in int64 leaves right.
    return (places * share + u & MASK) + share >= 1 << 32


def clean_integer(levels: NoiseLevels) -> int:
    """Return the share of clean images in units of 2**-32, an integer in [0, 2**32]."""
    return round(levels.clean_share * 2.0**32)


def count_clean(batch: int, noise: Noise, levels: NoiseLevels) -> int:
    """Count the images of a batch that stay clean by the stratified law, on the host and in integers.

    Args:
        batch: the number of images; their places are consecutive.
        noise: the key, of which offset and places are integers.
        levels: of which clean is "stratified".

    Returns:
        How many of the images :func:`is_clean` is true for: ``batch clean_share`` rounded up or down.

    Raises:
        TypeError: batch is no integer of at least 0, or noise no key, or levels no NoiseLevels.
        ValueError: offset or places are a tensor, or clean images independent of one another.
    """
    if not isinstance(noise, Noise) or not isinstance(levels, NoiseLevels):
        got = type(levels if isinstance(noise, Noise) else noise).__name__
        raise TypeError(f"count_clean: expected (batch, Noise, NoiseLevels), got {got}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 0:
        raise TypeError(f"count_clean: batch must be an integer of at least 0, got {batch!r}")
    if isinstance(noise.offset, Tensor) or isinstance(noise.places, Tensor):
        raise ValueError("count_clean: offset and places must be integers, got a tensor")
    if levels.clean != "stratified":
        raise ValueError(f"count_clean: clean must be 'stratified', got {levels.clean!r}")
    u = philox4x32((1, 0, *position_words(noise.offset, LEVEL_STREAM)), key_words(noise))[0]
    share, first = clean_integer(levels), noise.places
    return ((first + batch) * share + u >> 32) - (first * share + u >> 32)


def sample_noise(x: Tensor, sigma: Sigma | NoiseLevels, noise: Noise | Tensor) -> tuple[Tensor, Tensor]:
    """Add noise of one level per image: ``y = x + sigma eps``.

    Args:
        x: clean images [B, ...].
        sigma: a float, a 0-d or per-image [B] tensor, or :class:`NoiseLevels` to draw it from.
        noise: a :class:`Noise` key, or eps itself (the shape of x).

    Returns:
        (y, sigma [B]): y in the dtype of x, computed in float32 (float64) and rounded once; sigma in the computing
        dtype.
    """
    real = compute_dtype(x.dtype)
    if isinstance(sigma, NoiseLevels):
        if not isinstance(noise, Noise):
            raise TypeError("sample_noise: drawing sigma from NoiseLevels needs a Noise(seed, offset) key as noise")
        sigma = sample_sigma(x.shape[0], noise, sigma, real, x.device)
    sigma = per_image(sigma, x, "sigma")
    eps = standard_normal(x.shape, noise, real, x.device) if isinstance(noise, Noise) else noise.to(real)
    return (x.to(real) + expand(sigma, x) * eps).to(x.dtype), sigma


def denoising_residual(score: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    """Return ``sigma s + eps``: the error of the Tweedie denoiser in units of the noise, ``(D(y) - x) / sigma``.

    Args:
        score: s [B, ...].
        sigma: [B]; images with sigma = 0 get 0, for there is nothing to denoise.
        eps: the noise that was added, the shape of the score.
    """
    residual = expand(sigma, score) * score + eps
    return torch.where(expand(sigma > 0, score), residual, expand(sigma * 0, score))  # which is nan where sigma is


def denoising_loss(score: Tensor, sigma: Tensor, eps: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Return the denoising score matching loss, which is 1 for the identity denoiser at every noise level.

    The mean of ``(sigma s + eps)^2`` over the pixels of the images with sigma > 0; 0 if there are none. Minimized by
    ``s(y) = -E[sigma eps | y] / E[sigma^2 | y]`` (Vincent, "A connection between score matching and denoising
    autoencoders", 2011). Arguments as for :func:`denoising_residual`, and the number of images that the mean is over,
    if these are a share of them; the result is a scalar.
    """
    return mean_error(denoising_residual(score, sigma, eps).square().flatten(1).mean(1), sigma, count)


def mean_error(errors: Tensor, sigma: Tensor, count: int | Tensor | None) -> Tensor:
    """Return the sum of the errors [B] over a number of images, by default over those with sigma [B] above 0."""
    return errors.sum() / ((sigma > 0).sum().clamp(min=1) if count is None else count)


# ----------------------------------------------------------------------------------------------------------------
# Shared conventions
# ----------------------------------------------------------------------------------------------------------------


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that arithmetic is done in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_float64(values: Tensor) -> Tensor:
    """Return values in float64: where they are, or on the CPU if their device has no float64."""
    return (values.cpu() if values.device.type in WITHOUT_FLOAT64 else values).double()


def per_image(value: Sigma, x: Tensor, name: str) -> Tensor:
    """Return a float, 0-d or [B] tensor as a [B] tensor in the computing dtype and device of x [B, ...].

    Raises:
        TypeError, ValueError: something else, or what :func:`cdn_kernels.noise.check_level` refuses.
    """
    real = compute_dtype(x.dtype)
    check_level(value, name)
    if isinstance(value, (int, float)):
        value = torch.full((), value, dtype=real, device=x.device)  # by a kernel: a copy would wait for the device
    elif isinstance(value, Tensor) and value.dim() and value.device != x.device:
        raise ValueError(f"{name} must be on the device of the images, {x.device}, got {value.device}")
    value = torch.as_tensor(value, dtype=real, device=x.device)
    if value.dim() > 1 or (value.dim() == 1 and value.shape[0] != x.shape[0]):
        raise ValueError(f"{name} must be a number or one value per image, [{x.shape[0]}], got {list(value.shape)}")
    return value.expand(x.shape[0])


def expand(value: Tensor, x: Tensor) -> Tensor:
    """View one value per image, [B], so that it broadcasts over x [B, ...]."""
    return value.view(-1, *[1] * (x.dim() - 1))
