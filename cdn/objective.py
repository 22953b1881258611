"""The joint objective: cross-entropy plus denoising score matching, from one forward of one network."""

from typing import cast

import torch
from torch import Tensor, nn

import cdn_kernels
from cdn.model.capabilities import is_direct_denoiser
from cdn.model.finite import decided
from cdn.model.inputs import check_floating
from cdn_kernels import Noise, NoiseLevels
from cdn_kernels import reference as torch_ops
from cdn_kernels.noise import Sigma
from cdn_kernels.phases import phase
from cdn_kernels.transforms import transformed

# The factor of a term of the objective: a number, or a tensor [].
Weight = float | Tensor
# Scalars of a step by name, detached.
Parts = dict[str, Tensor]


def joint_loss(
    model: nn.Module,
    x: Tensor,
    labels: Tensor | None,
    sigma: Sigma | NoiseLevels,
    noise: Noise | Tensor,
    *,
    classification_weight: Weight = 1.0,
    denoising_weight: Weight = 1.0,
    label_smoothing: float = 0.0,
    impl: str = "auto",
) -> tuple[Tensor, Parts]:
    """Compute ``w_c CE(f(y), c) + lambda mean_pixels (sigma s(y) + eps)^2`` with ``y = x + sigma eps``.

    Args:
        model: a model of log-densities; with denoising_weight = 0 any classifier, with classification_weight = 0 also
            a :class:`cdn.DirectDenoiser`.
        x: clean images [B, C, H, W] in [0, 1].
        labels: classes [B]; None is allowed if classification_weight = 0.
        sigma: a float, a 0-d or per-image tensor, or :class:`cdn.NoiseLevels` to draw it from. Images with sigma = 0
            take part in the cross-entropy only.
        noise: a :class:`cdn.Noise` key, or eps itself [B, C, H, W].
        classification_weight, denoising_weight: w_c and lambda; a term of weight 0 is not computed. Tensors [] are
            not looked at: they may change between replays of a CUDA graph.
        label_smoothing: of the cross-entropy.
        impl: backend of the library's operations, also of those inside the model, see :func:`cdn_kernels.using`.

    Returns:
        (loss, parts): a scalar with a graph to the parameters, and to images and levels that require grad, or without
        one where grad mode is off, and a dict of detached scalars ``classification``, ``denoising`` (1 for the identity
        denoiser) and ``accuracy`` on the noisy images, as far as computed.

    Raises:
        ValueError: shapes that do not fit together, or no term left to compute.
    """
    with cdn_kernels.using(impl):
        objective = _Objective(model, x, labels, sigma, noise, classification_weight, denoising_weight, label_smoothing)
        return _value(model, objective), objective.parts


def joint_step(
    model: nn.Module,
    x: Tensor,
    labels: Tensor | None,
    sigma: Sigma | NoiseLevels,
    noise: Noise | Tensor,
    *,
    classification_weight: Weight = 1.0,
    denoising_weight: Weight = 1.0,
    label_smoothing: float = 0.0,
    impl: str = "auto",
) -> tuple[Tensor, Parts]:
    """Add the parameter gradient of :func:`joint_loss` to ``.grad``, by :func:`cdn_kernels.score_matching_step`.

    Args, errors: as for :func:`joint_loss` and the step.

    Returns:
        (loss, parts), both detached.
    """
    if transformed():
        raise RuntimeError(
            "joint_step: gradients cannot be accumulated under torch.func transforms or forward-mode differentiation; "
            "use cdn.joint_loss"
        )
    with cdn_kernels.using(impl), torch.enable_grad():
        objective = _Objective(model, x, labels, sigma, noise, classification_weight, denoising_weight, label_smoothing)
        if objective.needs_score:
            return cdn_kernels.score_matching_step(model, objective.y, objective, impl=impl).loss, objective.parts
        loss = _value(model, objective)
        with phase("backward"), torch.autocast(x.device.type, enabled=False):
            loss.backward()
        return loss.detach(), objective.parts


def _value(model: nn.Module, objective: "_Objective") -> Tensor:
    """Return the objective, with a graph if grad mode is on."""
    if not objective.needs_score:
        with phase("forward"):
            output = model(objective.y)
        return objective(output, None)
    if transformed():

        def density(y: Tensor) -> tuple[Tensor, Tensor]:
            output = model(y)
            return torch_ops.logsumexp(output), output

        score, output = torch_ops.transformed_score("joint_loss", density, objective.y)
        return objective(output, score)
    keep_graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        y = torch_ops.differentiable(objective.y, keep=keep_graph)
        with phase("forward"):
            output = model(y)
        with phase("score"):
            score = torch_ops.input_gradient("joint_loss", torch_ops.logsumexp(output), y, create_graph=keep_graph)
    return objective(output, score)


class _Objective:
    """The joint objective at the noisy images y of one step: a function of a model's output and score."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor | None,
        sigma: Sigma | NoiseLevels,
        noise: Noise | Tensor,
        classification_weight: Weight,
        denoising_weight: Weight,
        label_smoothing: float,
    ) -> None:
        if not _computed(classification_weight) and not _computed(denoising_weight):
            raise ValueError("joint_loss: classification_weight and denoising_weight are both 0: nothing to minimize")
        if _computed(classification_weight) and (labels is None or labels.shape != x.shape[:1]):
            raise ValueError(
                f"joint_loss: labels must be one class per image, [{len(x)}], "
                f"got {None if labels is None else list(labels.shape)}"
            )
        if _computed(classification_weight) and is_direct_denoiser(model):
            raise ValueError("joint_loss: a direct denoiser knows no classes, expected classification_weight = 0")
        check_floating(x, "joint_loss")
        if not len(x):
            raise ValueError("joint_loss: expected images [B, C, H, W], one or more, got none")
        self.labels, self.noise = labels, noise
        self.weights, self.label_smoothing = (classification_weight, denoising_weight), label_smoothing
        self.needs_score = _computed(denoising_weight) and not is_direct_denoiser(model)
        self.parts: Parts = {}
        with phase("noise"):
            self.y, self.sigma = cdn_kernels.sample_noise(x, sigma, noise)

    def __call__(self, output: Tensor, score: Tensor | None) -> Tensor:
        terms: list[Tensor] = []
        classification_weight, denoising_weight = self.weights
        if _computed(classification_weight):
            assert self.labels is not None  # checked above
            loss = torch_ops.cross_entropy(output, self.labels, label_smoothing=self.label_smoothing)
            terms.append(classification_weight * loss)
            self.parts["classification"] = loss.detach()
            self.parts["accuracy"] = (decided(output.detach()) == self.labels).float().mean()
        if _computed(denoising_weight):
            if score is None:
                noisy = torch.where(self.sigma > 0, self.sigma, 1.0)  # no division by zero: these do not count
                score = -output / torch_ops.expand(noisy, output).square()
            # A key gives the same eps again: nothing the size of the images has to be kept through the forward.
            with phase("noise"):
                loss = cdn_kernels.denoising_loss(score, self.sigma, self.noise)
            terms.append(denoising_weight * loss)
            self.parts["denoising"] = loss.detach()
        return cast(Tensor, sum(terms))  # at least one


def _computed(weight: Weight) -> bool:
    return isinstance(weight, torch.Tensor) or weight != 0
