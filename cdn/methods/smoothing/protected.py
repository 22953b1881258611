"""A classifier that was not trained on noise, behind a denoiser.

After Salman, Sun, Yang, Kapoor & Kolter, "Denoised smoothing: a provable defense for pretrained classifiers" (2020):
noise is added, a denoiser takes it away, the classifier sees what is left; smoothed, this is certified like any other
classifier. Purification adds noise to drown a perturbation and takes it away in several steps, after Nie et al.,
"Diffusion models for adversarial purification" (2022), here with few deterministic steps.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

import cdn_kernels
from cdn.model import capabilities
from cdn.model.density import denoise, log_prob
from cdn.model.finite import require_finite
from cdn.model.inputs import check_counts, check_floating, check_sigma
from cdn_kernels.replaced import replaced


class Protected(nn.Module):
    """Denoise noisy images, then classify them with a frozen classifier: logits [B, classes] for images [B, C, H, W].

    The forward expects images with noise of level sigma, as :func:`cdn.certify` at that sigma makes them. It can be
    differentiated end to end by its input, through the score too, which adaptive attacks need; it keeps a graph where
    grad mode is on and the input requires grad.

    Args:
        classifier: any module that gives logits. Its parameters get no gradient and its modules stay in evaluation
            mode; ``requires_grad`` is left as found.
        model: a model of log-densities or a :class:`cdn.DirectDenoiser`.
        sigma: the noise level, above 0.
        steps: of the denoising; 1 is denoised smoothing.

    Raises:
        ValueError: a model that does not denoise, a classifier without classes, or a number out of range.

    Limitations: a blind denoiser moves an image without noise by far too much, for it takes sigma as said and its score
    as that of a sharper density: add noise first.
    """

    def __init__(self, classifier: nn.Module, model: nn.Module, sigma: float, steps: int = 1) -> None:
        super().__init__()
        if not capabilities.denoises(model):
            raise ValueError(f"model: expected one that denoises, got {capabilities.kind(model)}")
        if not capabilities.classifies(classifier):
            raise ValueError(f"classifier: expected one that classifies, got {capabilities.kind(classifier)}")
        check_sigma(sigma)
        check_counts(steps=steps)
        self.classifier, self.model, self.sigma, self.steps = classifier.eval(), model, sigma, steps

    def train(self, mode: bool = True) -> "Protected":
        """Set the training mode of the denoiser; the classifier stays in evaluation mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, y: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W] with noise of level sigma."""
        return self.classify(self.purify(y))

    def purify(self, y: Tensor, steps: int | None = None) -> Tensor:
        """Take away noise of level sigma, step by step.

        Noise levels fall linearly, ``s_k = sigma (1 - k / steps)``, and each step goes from ``y`` to
        ``D(y) + (s_{k+1} / s_k) (y - D(y))``: Euler's method for the deterministic flow of Song et al., "Score-based
        generative modeling through stochastic differential equations" (2021). One step is ``D(y)``.

        Args:
            y: images [B, C, H, W] plus noise of level sigma.
            steps: None for those of the module.

        Returns:
            Images, the shape of y, not clipped.
        """
        steps = self.steps if steps is None else steps
        check_counts(steps=steps)
        graph = torch.is_grad_enabled() and y.requires_grad
        for left in range(steps, 0, -1):
            clean = denoise(self.model, y, self.sigma * left / steps, create_graph=graph)
            y = clean + (left - 1) / left * (y - clean)
        return y

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of the frozen classifier for images x [B, C, H, W]."""
        return classify_frozen(self.classifier, x)


def classify_frozen(classifier: nn.Module, x: Tensor) -> Tensor:
    """Return logits [B, classes] through which gradients reach x [B, C, H, W] but no parameter of the classifier."""
    with replaced(classifier, {name: p.detach() for name, p in classifier.named_parameters()}):
        return cast(Tensor, classifier(x))


class LevelVote(nn.Module):
    """Let a frozen classifier vote on images denoised from several noise levels, by how typical each noisy image is.

    The generative reading of protection: at level k noise gives ``y_k = x + sigma_k eps_k``, and the classes get

        ``p(c | x) = sum_k w_k p(c | D(y_k)) / sum_k w_k``,  ``w_k = exp(-z_k^2 / 2)``,
        ``z_k = (log p(y_k) - m_k) / s_k``,

    with m_k and s_k the mean and standard deviation of ``log p(y_k)`` over clean reference images at that level: w_k
    is, up to its largest value, the density of the observed log p under a normal fit to clean images. The bare log p
    could not be the weight, for it falls with the level whatever the image; in z that cancels. A level at which image
    and noise look as those of the training counts most, and one at which they do not hardly counts.

    Args:
        classifier: any module that gives logits, frozen as in :class:`Protected`.
        model: a model of log-densities.
        sigmas: the noise levels, one or more.
        reference: clean images [N, C, H, W], N of 2 or more, that were not made by an attacker.
        noise: a :class:`cdn.Noise` key for these; like any key here, it stands for the K next to it, one per level.

    The forward takes images [B, C, H, W] without noise and a key, and returns log-probabilities [B, classes]. It can be
    differentiated by the images, weights included.

    Raises:
        ValueError: no level, fewer than two reference images, or what :class:`Protected` refuses.
    """

    mean: Tensor  # [K]
    deviation: Tensor  # [K]

    def __init__(
        self,
        classifier: nn.Module,
        model: nn.Module,
        sigmas: Sequence[float],
        reference: Tensor,
        noise: cdn_kernels.Noise,
    ) -> None:
        super().__init__()
        if not len(sigmas):
            raise ValueError("sigmas must name at least one noise level")
        if len(reference) < 2:
            raise ValueError(f"reference: expected at least 2 reference images, got {len(reference)}")
        self.levels = nn.ModuleList(Protected(classifier, model, sigma) for sigma in sigmas)
        with torch.no_grad():
            values = torch.stack([log_prob(model, y) for _, y in self._noisy(reference, noise)])
        require_finite(values, "reference: expected images of finite log p, got nan or infinity for some")
        self.register_buffer("mean", values.mean(1))
        self.register_buffer("deviation", values.std(1))

    def forward(self, x: Tensor, noise: cdn_kernels.Noise) -> Tensor:
        """Return log-probabilities [B, classes] of images [B, C, H, W] without noise."""
        logits, log_weights = [], []
        for k, (level, y) in enumerate(self._noisy(x, noise)):
            logits.append(level(y).log_softmax(1))
            graph = torch.is_grad_enabled() and x.requires_grad
            z = (log_prob(level.model, y, create_graph=graph) - self.mean[k]) / self.deviation[k]
            log_weights.append(-z.square() / 2)
        weights = torch.stack(log_weights).log_softmax(0)
        return (torch.stack(logits) + weights[:, :, None]).logsumexp(0)

    def _noisy(self, x: Tensor, noise: cdn_kernels.Noise) -> Iterator[tuple[Protected, Tensor]]:
        """Yield each level and x with its noise, independent from level to level."""
        check_floating(x, "LevelVote")
        for k, level in enumerate(cast(Iterable[Protected], self.levels)):
            key = noise.moved(k)
            yield level, cdn_kernels.sample_noise(x, level.sigma, key)[0]
