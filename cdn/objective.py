"""The joint objective: cross-entropy plus denoising score matching, from one forward of one network."""
import torch
import torch.nn.functional as F

import cdn_kernels
from cdn_kernels import reference as ops

from .model.baselines import DirectDenoiser
from .phases import phase


def joint_loss(model, x, labels, sigma, noise, *, classification_weight=1.0, denoising_weight=1.0,
               label_smoothing=0.0, impl="auto"):
    """Compute ``w_c CE(f(y), c) + lambda mean_pixels (sigma s(y) + eps)^2`` with ``y = x + sigma eps``.

    Args:
        model: a model of log-densities; with denoising_weight = 0 any classifier, with classification_weight = 0 also
            a :class:`cdn.DirectDenoiser`.
        x: clean images [B, C, H, W] in [0, 1]; a constant, like sigma and the noise.
        labels: classes [B]; None is allowed if classification_weight = 0.
        sigma: a float, a 0-d or per-image tensor, or :class:`cdn.NoiseLevels` to draw it from. Images with sigma = 0
            take part in the cross-entropy only.
        noise: a :class:`cdn.Noise` key, or eps itself [B, C, H, W].
        classification_weight, denoising_weight: w_c and lambda; a term of weight 0 is not computed.
        label_smoothing: of the cross-entropy.
        impl: backend of the library's operations, also of those inside the model, see :func:`cdn_kernels.using`.

    Returns:
        (loss, parts): a scalar with a graph to the parameters, or without one where grad mode is off, and a dict of
        detached scalars ``classification``, ``denoising`` (1 for the identity denoiser) and ``accuracy`` on the noisy
        images, as far as computed.

    Raises:
        ValueError: shapes that do not fit together, or no term left to compute.
    """
    if not classification_weight and not denoising_weight:
        raise ValueError("joint_loss: classification_weight and denoising_weight are both 0: nothing to minimize")
    if classification_weight and (labels is None or labels.shape != x.shape[:1]):
        raise ValueError(f"joint_loss: labels must be one class per image, [{len(x)}], "
                         f"got {None if labels is None else list(labels.shape)}")
    with cdn_kernels.using(impl):
        return _joint_loss(model, x, labels, sigma, noise, classification_weight, denoising_weight, label_smoothing)


def _joint_loss(model, x, labels, sigma, noise, classification_weight, denoising_weight, label_smoothing):
    with phase("noise"):
        y, sigma = cdn_kernels.sample_noise(x, sigma, noise)
    parts = {}
    terms = []
    keep_graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        y = (y.clone() if y.is_inference() else y.detach()).requires_grad_(bool(denoising_weight))
        with phase("forward"):
            output = model(y)
        if classification_weight:
            loss = F.cross_entropy(output if keep_graph else output.detach(), labels, label_smoothing=label_smoothing)
            terms.append(classification_weight * loss)
            parts["classification"] = loss.detach()
            parts["accuracy"] = (output.detach().argmax(1) == labels).float().mean()
        if denoising_weight:
            with phase("score"):
                score = _score(model, y, output, sigma, keep_graph)
            # A key gives the same eps again: nothing the size of the images has to be kept through the forward.
            with phase("noise"):
                loss = cdn_kernels.denoising_loss(score, sigma, noise)
            terms.append(denoising_weight * loss)
            parts["denoising"] = loss.detach()
        return sum(terms), parts


def _score(model, y, output, sigma, keep_graph):
    """Return the score, with a graph if asked for, from the output of the model at y."""
    if isinstance(model, DirectDenoiser):
        noisy = torch.where(sigma > 0, sigma, 1.0)  # no division by zero: these images do not count
        return -(output if keep_graph else output.detach()) / ops.expand(noisy, y).square()
    return torch.autograd.grad(output.logsumexp(1).sum(), y, create_graph=keep_graph)[0]
