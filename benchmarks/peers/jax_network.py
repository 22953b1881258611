"""GradResNet and the joint loss in jax.numpy, images and features [B, H, W, C]; needs JAX."""

import jax
import jax.numpy as jnp
from jax import lax

from cdn.model.gradresnet import GROUP_SIZE


def joint_loss(config, half, weights, mean, y, sigma, eps, labels):
    """Return cross-entropy plus denoising score matching.

    Args:
        config: of the torch model, ``model.config``; its stem must be "cifar".
        half: whether to store features and convolve in bf16.
        weights: by the names of the torch model, filters as [H, W, I, O].
        mean: what is subtracted from the images.
        y, sigma, eps, labels: noisy images, their noise levels [B], the noise and the classes [B].
    """

    def log_density(y):
        logits = _logits(config, jnp.bfloat16 if half else jnp.float32, weights, y - mean)
        return jax.nn.logsumexp(logits, 1).sum(), logits

    score, logits = jax.grad(log_density, has_aux=True)(y)
    noisy = sigma > 0
    residual = jnp.where(noisy[:, None, None, None], sigma[:, None, None, None] * score + eps, 0.0)
    denoising = jnp.square(residual).mean((1, 2, 3)).sum() / jnp.maximum(noisy.sum(), 1)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, 1), labels[:, None], 1)
    return denoising - chosen.mean()


def _logits(config, dtype, weights, h):
    size = h[0].size
    features = []
    if dtype == h.dtype:
        stem = weights["trunk.stem.0.weight"]
    else:  # two parts, the rounded values and what rounding lost: one alone would bury weak noise
        high = lax.reduce_precision(h, exponent_bits=8, mantissa_bits=7)  # XLA would cancel casts there and back
        low = lax.stop_gradient(h - high)
        h, stem = jnp.concatenate([high, low], 3), jnp.concatenate([weights["trunk.stem.0.weight"]] * 2, 2)
    h = _gelu(_convolve(h.astype(dtype), stem))
    for stage, blocks in enumerate(config["blocks"]):
        for block in range(blocks):
            h = _block(config, weights, f"trunk.stages.{stage}.{block}.", h, stride=1 + (block == 0 < stage))
        features.append(h)
    return _head(config["head"], weights, features, size)


def _block(config, weights, name, h, stride):
    v = _convolve(_gelu(_convolve(h, weights[name + "first.weight"], stride)), weights[name + "second.weight"])
    shortcut = weights.get(name + "shortcut.weight")
    v = v + (h if shortcut is None else _convolve(h, shortcut, stride))
    b = jax.nn.gelu(v.astype(jnp.float32), approximate=False)
    grouped = b.reshape(*b.shape[:3], -1, GROUP_SIZE)
    centred = grouped - grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(centred).mean((1, 2, 4), keepdims=True)
    if config["norm"] == "plain":
        scale = lax.rsqrt(variance + config["eps"])
    else:
        common = variance.mean(3, keepdims=True)
        relative = variance / jnp.where(common > 0, common, 1.0)
        scale = jnp.where(common > 0, lax.rsqrt(relative + config["eps"]), 0.0)
    return ((centred * scale).reshape(b.shape) * weights[name + "gain"]).astype(v.dtype)


def _head(kind, weights, features, size):
    pooled = [h.astype(jnp.float32).mean((1, 2)) for h in features]
    p = jnp.concatenate(
        [_linear(h, weights[f"head.sides.{i}.weight"]) for i, h in enumerate(pooled[:-1])] + pooled[-1:], 1
    )
    if kind == "linear":
        return _linear(p, weights["head.classes.weight"])
    tiny = jnp.finfo(jnp.float32).tiny
    logits = _linear(p * lax.rsqrt(jnp.square(p).mean(1, keepdims=True) + tiny), weights["head.classes.weight"])
    q = sum(
        jnp.square(_convolve(h, weights[f"head.maps.{i}"]).astype(jnp.float32)).sum(3).mean((1, 2))
        for i, h in enumerate(features)
    )
    q = jnp.log(jnp.maximum(q, tiny)) if kind == "log-energy" else q
    return logits - size / 2 * q[:, None]


def _linear(h, weight):
    return jnp.matmul(h, weight.T, precision=lax.Precision.HIGHEST)


def _convolve(h, weight, stride=1):
    """Convolve in the dtype of h with "same" padding."""
    padding = [(weight.shape[0] // 2,) * 2] * 2
    return lax.conv_general_dilated(
        h, weight.astype(h.dtype), (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _gelu(u):
    """Apply the exact GELU, computed in float32 and rounded once."""
    return jax.nn.gelu(u.astype(jnp.float32), approximate=False).astype(u.dtype)
