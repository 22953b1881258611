"""The joint objective: cross-entropy plus denoising score matching, from one forward of one network."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

import cdn_kernels
from cdn.model.capabilities import is_direct_denoiser, is_ours, treats_images_alone
from cdn.model.finite import decided
from cdn.model.inputs import check_floating
from cdn_kernels import Noise, NoiseLevels
from cdn_kernels import reference as torch_ops
from cdn_kernels.noise import Sigma
from cdn_kernels.ops.common import resolve_untransformed
from cdn_kernels.ops.noise import check_noise
from cdn_kernels.phases import phase
from cdn_kernels.transforms import can_be_read, transformed

# The factor of a term of the objective: a number, or a tensor [].
Weight = float | Tensor
# Scalars of a step by name, detached.
Parts = dict[str, Tensor]


class WholeBatch(NamedTuple):
    """The batch that the images of one call are a share of: a micro-batch, or the part of one process.

    Every term is then divided by the number of images of the whole batch, and losses, parts and gradients of all shares
    add up to those of one call with all images, however uneven the shares are. The noise of an image is that of its
    place, if the key has the place of the first image of the share: ``Noise(seed, step, places=first)``.

    Args:
        images: how many it has.
        noisy: how many of them have sigma > 0, at least 0; or a tensor [] on the device, which is not looked at. For
            stratified :class:`cdn.NoiseLevels` that is ``images - cdn_kernels.count_clean(images, noise, levels)``, for
            others ``(cdn_kernels.sample_sigma(images, noise, levels) > 0).sum()``, in each case with the key of the
            whole batch. A number below that of the share makes loss and gradient nan.
    """

    images: int
    noisy: int | Tensor


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
    whole: WholeBatch | None = None,
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
        whole: the batch that x is a share of; None if x is all of it.
        impl: backend of the library's operations, also of those inside the model, see :func:`cdn_kernels.using`.

    Returns:
        (loss, parts): a scalar with a graph to the parameters, and to images and levels that require grad, or without
        one where grad mode is off, and a dict of detached scalars ``classification``, ``denoising`` (1 for the identity
        denoiser) and ``accuracy`` on the noisy images, as far as computed.

    Raises:
        ValueError: shapes that do not fit together, or no term left to compute.
    """
    with cdn_kernels.using(impl):
        weights = classification_weight, denoising_weight
        objective = _Objective(model, x, labels, sigma, noise, *weights, label_smoothing, whole)
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
    whole: WholeBatch | None = None,
    clean: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Parts]:
    """Add the parameter gradient of :func:`joint_loss` to ``.grad``, by :func:`cdn_kernels.score_matching_step`.

    Images with sigma = 0 take part in the cross-entropy only: where the host knows how many there are, and the model
    computes every image for itself (:func:`cdn.model.capabilities.treats_images_alone`), they are spared the sweeps of
    the score. Networks of this package are called once then, where they run in the kernels of a CPU; any other model is
    called twice, on the noisy images and on the clean ones. The gradient is that of the whole batch, within rounding,
    and reaches every parameter, and its hooks, once. The host knows sigma itself, as a number or a tensor on the CPU
    that requires no grad, and what stratified :class:`cdn.NoiseLevels` draw; independent ones run whole, as ever.

    Args, errors: as for :func:`joint_loss` and the step.
        clean: how many images of x stay clean, from :func:`cdn_kernels.count_clean`, for stratified levels with a key
            whose offset is in a tensor that the host does not read; None to run such batches whole. A number that is
            too high makes loss and gradient nan.

    Returns:
        (loss, parts), both detached.
    """
    if transformed():
        raise RuntimeError(
            "joint_step: gradients cannot be accumulated under torch.func transforms or forward-mode differentiation; "
            "use cdn.joint_loss"
        )
    with cdn_kernels.using(impl), torch.enable_grad():
        weights = classification_weight, denoising_weight
        objective = _Objective(
            model, x, labels, sigma, noise, *weights, label_smoothing, whole, apart=True, clean=clean
        )
        if objective.needs_score:
            step = cdn_kernels.score_matching_step(model, objective.y, objective, scored=objective.scored, impl=impl)
            return step.loss, objective.parts
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
    """The joint objective at the noisy images y of one step: a function of a model's output and score.

    Args:
        apart: take clean images out of y where they can run without a score; they then run as the value is computed.
        clean: how many there are, as of :func:`joint_step`.
    """

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
        whole: WholeBatch | None,
        *,
        apart: bool = False,
        clean: int | None = None,
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
        self.model, self.labels = model, labels
        self.weights, self.label_smoothing = (classification_weight, denoising_weight), label_smoothing
        self.needs_score = _computed(denoising_weight) and not is_direct_denoiser(model)
        self.rest: Tensor | None = None  # the clean images beside y
        self.scored: int | None = None  # how many of y are noisy, the first ones, if clean ones follow
        self.blank = False  # whether all are clean, and nothing is denoised
        self.valid: Tensor | None = None  # 1, or nan where a number that was told cannot be
        self.whole = _checked(whole, x)
        self.parts: Parts = {}
        _check_told(clean, x, sigma, noise)
        count = self._spared(x, sigma, noise, clean) if apart else 0
        with phase("noise"):
            if count:
                check_noise(noise, x)
                x, sigma, noise = self._separated(x, sigma, noise, count, counted=clean is not None)
            self.noise = noise
            if self.blank:
                self.y = x
            else:
                self.y, self.sigma = cdn_kernels.sample_noise(x, sigma, noise)
                if self.rest is not None and self._runs_at_once():
                    self.scored, self.y, self.rest = len(self.y), torch.cat([self.y, self.rest]), None

    def _spared(self, x: Tensor, sigma: Sigma | NoiseLevels, noise: Noise | Tensor, told: int | None) -> int:
        """Return how many clean images are taken out of y: all, or none where that gains nothing or is not allowed."""
        classification, denoising = map(_computed, self.weights)
        if not denoising or not treats_images_alone(self.model):
            return 0
        clean = _count_clean(x, sigma, noise) if told is None else told
        return clean if classification or clean < len(x) else 0

    def _runs_at_once(self) -> bool:
        """Tell whether clean images go through the model with the noisy ones: where its score can leave them out.

        The operations of the library do on CPUs; of others it is not known.
        """
        return is_ours(self.model) and resolve_untransformed("conv2d", "auto", self.y) == "cpu"

    def _separated(
        self, x: Tensor, sigma: Sigma | NoiseLevels, noise: Noise | Tensor, count: int, *, counted: bool
    ) -> tuple[Tensor, Tensor, Noise | Tensor]:
        """Return the images, levels and noise of the noisy images, and keep the clean ones apart.

        No shape depends on a value, and none is looked at: a CUDA graph can hold it.
        """
        real = torch_ops.compute_dtype(x.dtype)
        if isinstance(sigma, NoiseLevels):
            assert isinstance(noise, Noise)  # others have no count
            sigma = cdn_kernels.sample_sigma(len(x), noise, sigma, dtype=real, device=x.device)
        sigma = torch_ops.per_image(sigma, x, "sigma")
        order = (sigma == 0).to(torch.uint8).argsort(stable=True)  # noisy images first
        noisy, clean = order.split([len(x) - count, count])
        if counted:
            self._require((sigma[clean] == 0).all())
        if count == len(x):
            self.blank, self.needs_score = True, False
            return x, sigma, noise
        self.labels = None if self.labels is None else self.labels[order]
        if _computed(self.weights[0]):  # else nothing is to be said of them
            self.rest = x[clean]
        return x[noisy], sigma[noisy], noise.chosen(noisy) if isinstance(noise, Noise) else noise[noisy]

    def _require(self, as_told: Tensor) -> None:
        """Let the loss be nan, and its gradient, unless a bool [] on the device is true."""
        as_told = as_told.to(torch.float32)
        self.valid = as_told / as_told if self.valid is None else self.valid * as_told / as_told

    def __call__(self, output: Tensor, score: Tensor | None) -> Tensor:
        terms: list[Tensor] = []
        classification_weight, denoising_weight = self.weights
        if _computed(classification_weight):
            terms.append(classification_weight * self._classification(output))
        if _computed(denoising_weight):
            loss = torch.zeros((), device=output.device) if self.blank else self._denoising(output, score)
            terms.append(denoising_weight * loss)
            self.parts["denoising"] = loss.detach()
        total = cast(Tensor, sum(terms))  # at least one
        return total if self.valid is None else total * self.valid

    def _classification(self, logits: Tensor) -> Tensor:
        assert self.labels is not None  # checked at the start
        if self.rest is not None:
            with phase("forward"):
                logits = torch.cat([logits, self.model(self.rest)])
        right = (decided(logits.detach()) == self.labels).float()
        if self.whole is None:
            loss = torch_ops.cross_entropy(logits, self.labels, label_smoothing=self.label_smoothing)
            self.parts["accuracy"] = right.mean()
        else:
            total = torch_ops.cross_entropy(logits, self.labels, label_smoothing=self.label_smoothing, reduction="sum")
            loss, self.parts["accuracy"] = total / self.whole.images, right.sum() / self.whole.images
        self.parts["classification"] = loss.detach()
        return loss

    def _denoising(self, output: Tensor, score: Tensor | None) -> Tensor:
        if score is None:
            sigma = torch.where(self.sigma > 0, self.sigma, 1.0)  # no division by zero: these do not count
            score = -output / torch_ops.expand(sigma, output).square()
        # A key gives the same eps again: nothing the size of the images has to be kept through the forward.
        count: int | Tensor | None = None
        if self.whole is not None:
            noisy = self.whole.noisy
            self._require((self.sigma > 0).sum() <= noisy)
            count = noisy.clamp(min=1) if isinstance(noisy, Tensor) else max(noisy, 1)
        with phase("noise"):
            return cdn_kernels.denoising_loss(score, self.sigma, self.noise, count=count)


def _checked(whole: WholeBatch | None, x: Tensor) -> WholeBatch | None:
    """Return the whole batch, or raise ValueError where its numbers cannot be."""
    if whole is None:
        return None
    images, noisy = whole
    if isinstance(images, bool) or not isinstance(images, int) or images < len(x):
        raise ValueError(f"joint_loss: whole.images must be a number of at least the {len(x)} of x, got {images!r}")
    if isinstance(noisy, Tensor):
        if noisy.dim() or noisy.device != x.device:
            raise ValueError(
                f"joint_loss: whole.noisy must be a number or a tensor [] on {x.device}, got {list(noisy.shape)} on "
                f"{noisy.device}"
            )
    elif isinstance(noisy, bool) or not isinstance(noisy, int) or not 0 <= noisy <= images:
        raise ValueError(f"joint_loss: whole.noisy must be a number in [0, {images}], got {noisy!r}")
    return whole


def _count_clean(x: Tensor, sigma: Sigma | NoiseLevels, noise: Noise | Tensor) -> int:
    """Return how many images of a step stay clean, as far as the host knows without waiting for a device; else 0."""
    if isinstance(sigma, Tensor):
        known = _can_look_at(sigma) and not sigma.requires_grad and sigma.shape in ((), x.shape[:1])
        return int((sigma == 0).expand(len(x)).sum()) if known else 0
    if not isinstance(sigma, NoiseLevels):
        return len(x) if sigma == 0 else 0
    if not _stratified(sigma, noise):
        return 0
    assert isinstance(noise, Noise)
    in_tensors = [held for held in (noise.offset, noise.places) if isinstance(held, Tensor)]
    if not in_tensors:
        return cdn_kernels.count_clean(len(x), noise, sigma)
    if not all(map(_can_look_at, in_tensors)):
        return 0
    # Not the offset is looked at but the count, which stays the same for a recording of the step.
    return int((cdn_kernels.sample_sigma(len(x), noise, sigma) == 0).sum())


def _check_told(told: int | None, x: Tensor, sigma: Sigma | NoiseLevels, noise: Noise | Tensor) -> None:
    """Raise ValueError if the number of clean images was told and cannot be, or is that of other levels."""
    if told is None:
        return
    if not _stratified(sigma, noise):
        raise ValueError(f"joint_step: clean counts images of stratified NoiseLevels with a key, got sigma={sigma!r}")
    if isinstance(told, bool) or not isinstance(told, int) or not 0 <= told <= len(x):
        raise ValueError(f"joint_step: clean must be an integer in [0, {len(x)}], got {told!r}")


def _stratified(sigma: Sigma | NoiseLevels, noise: Noise | Tensor) -> bool:
    return isinstance(sigma, NoiseLevels) and sigma.clean == "stratified" and isinstance(noise, Noise)


def _can_look_at(x: Tensor) -> bool:
    return x.device.type == "cpu" and can_be_read(x)


def _computed(weight: Weight) -> bool:
    return isinstance(weight, torch.Tensor) or weight != 0
