"""Classify by reconstruction: the class that explains an image best."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdn.methods.synthesis.generators import ClassGenerators
from cdn.methods.synthesis.inference import Distance, Inference, bound_of, infer, pixel_distance
from cdn.model.finite import require_finite

# Steps of L-BFGS that fit two numbers.
CALIBRATION_STEPS = 50


class ReconstructionClassifier(nn.Module):
    """Classify images by how well a generator of each class can explain them: analysis by synthesis.

    After Schott et al. (2018, arXiv 1805.09190). The logits are ``scale * l_c(x)`` with the optimized bound
    ``l_c(x) = max_z -distance(x, G_c(z)) - |z|^2 / 2`` of :func:`cdn.methods.synthesis.infer`. They can be
    differentiated by x: as z is at its maximum, what it does with x does not count to first order (envelope theorem),
    and latents and reconstructions are constants of the graph. So the attacks of :mod:`cdn.methods.attacks` work on the
    module as it is.

    Args:
        generators: :class:`cdn.methods.synthesis.ClassGenerators`.
        distance: what takes the place of the pixel likelihood, as for :func:`cdn.methods.synthesis.infer`.
        options: of :func:`cdn.methods.synthesis.infer`: steps, starts, draws, rate, seed, batch_size.

    Attributes:
        scale, log_eta: buffers that :meth:`calibrate` sets; 1 and -inf until then.

    Limitations: the gradient is that of the optimum, and inexact as far as the search fell short of it. Every forward
    is a search, some hundred times as dear as one pass through the decoders. The class-dependent factors close to 1
    with which Schott et al. fine-tune their logits are left out: they would cost the bounds their meaning.
    """

    scale: Tensor  # []
    log_eta: Tensor  # []

    def __init__(self, generators: ClassGenerators, distance: Distance | None = None, **options: Any) -> None:
        super().__init__()
        self.generators, self.distance, self.options = generators, distance, options
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("log_eta", torch.tensor(-math.inf))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, K] of images x [N, C, H, W] in [0, 1]."""
        found = self.infer(x.detach())
        if torch.is_grad_enabled() and x.requires_grad:
            return self.scale * bound_of(self._distance()(x, found.reconstructions), found.latents)
        return self.scale * found.bound

    def infer(self, x: Tensor) -> Inference:
        """Return what each class makes of images [N, C, H, W], :class:`cdn.methods.synthesis.Inference`."""
        return infer(self.generators, x, self.distance, **self.options)

    def posterior(self, x: Tensor) -> Tensor:
        """Return class probabilities that grow even for images that no class explains, [N, K].

        ``p(c | x) = (exp(scale l_c) + eta) / sum_k (exp(scale l_k) + eta)`` of Schott et al.: where all l are low, eta
        outweighs them. It never changes the order of the classes, which is why the logits leave it out: there it would
        only take the gradient from attacks.
        """
        return _posterior(self(x), self.log_eta).exp()

    def calibrate(self, x: Tensor, labels: Tensor) -> float:
        """Set scale and eta to those that minimize the cross-entropy of labeled images.

        Args:
            x: images [N, C, H, W] in [0, 1], better not those that trained the generators.
            labels: int64 [N].

        Returns:
            The cross-entropy reached, in nats.

        Raises:
            NotFiniteError: bounds that are not finite.
        """
        bound = self.infer(x).bound.double()
        require_finite(bound, "calibrate: expected images that every class can explain, got bounds of nan or infinity")
        # Started where logits of the best two classes differ by about 1, and where eta does not count.
        gap = bound.topk(2, dim=1).values.diff(dim=1).abs().median().clamp(min=1e-6)
        log_scale, log_eta = -gap.log(), bound.amax(1).min() / gap - 2
        with torch.inference_mode(False), torch.enable_grad():
            log_scale, log_eta = (value.clone().requires_grad_() for value in (log_scale, log_eta))
            optimizer = torch.optim.LBFGS(
                [log_scale, log_eta], max_iter=CALIBRATION_STEPS, line_search_fn="strong_wolfe"
            )

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = F.nll_loss(_posterior(log_scale.exp() * bound, log_eta), labels)
                loss.backward()
                return loss

            optimizer.step(closure)
            loss = float(closure().detach())
        self.scale.copy_(log_scale.detach().exp())
        self.log_eta.copy_(log_eta.detach())
        return loss

    def _distance(self) -> Distance:
        return self.distance or pixel_distance(self.generators.sigma.detach())


def _posterior(logits: Tensor, log_eta: Tensor) -> Tensor:
    return torch.logaddexp(logits, log_eta.to(logits)).log_softmax(1)
