"""The step by finite differences of an ordinary parameter gradient: no second derivative at all."""

import torch
import torch.nn.functional as F
from torch.func import grad_and_value

import cdn_kernels
from benchmarks.peers.functional import Functional
from cdn_kernels import reference

# Root mean square of the shift of an image, in units of its noise level, which is the scale that a log-density of noisy
# images changes on. Rounding costs eps / STEP and truncation STEP^2, so that the best step is near the cube root of eps
# times a constant that depends on the network; these are the best in sweeps over {1, 2, 5} * 10^-n.
STEP = {"float32": 1e-3, "bf16": 1e-2}
# Of the relative error of the gradient: what is attainable for the defaults of cdn.train, with a margin.
TOLERANCE = {"float32": 1e-2, "bf16": 0.2}


class FiniteDifference(Functional):
    """``grad_theta [E(y + h ydot) - E(y - h ydot)] / 2h``, with ydot the gradient of the loss by the score.

    Central differences along one direction in place of second derivatives, as in Pang et al., "Efficient learning of
    generative models via finite-difference score matching" (2020); there the loss itself is a difference, here only its
    gradient is. Both signs are one batch of twice the size, every image with its own h (see STEP). The cross-entropy is
    added at both points, which costs nothing; its mean differs from that at y by the order of h^2.

    Error of the gradient against float64 (width 32, 8 images of 32x32, at initialization), and that of eager double
    backward: in float32 7e-6 and 4e-6 with plain norm and linear head, 6e-4 and 2e-5 with the defaults; in bf16, where
    the rounding of both points is much the same and the rest averages out, 3e-2 and 4e-2, and 1e-1 and 5e-2. A
    rougher network needs a smaller step: nothing here checks that the step is still small enough after training.

    Args:
        problem: see :class:`Step`.
        compiled: whether torch.compile makes the network's forward and first-order backward.

    Attributes:
        tolerance: attainable relative error of the gradient.
    """

    def __init__(self, problem, compiled=False):
        super().__init__(problem)
        self.relative_step, self.tolerance = STEP[problem.precision], TOLERANCE[problem.precision]
        if compiled:
            self.logits = torch.compile(self.logits, dynamic=False, fullgraph=True)

    def __call__(self):
        self.model.zero_grad()
        y, sigma, eps = self.draw()
        with cdn_kernels.using("reference"):
            logits = self.logits(self.parameters(), y.requires_grad_())
            (score,) = torch.autograd.grad(reference.logsumexp(logits).sum(), y)
            direction, denoising = grad_and_value(reference.denoising_loss)(score, sigma, eps)
            length = direction.square().mean((1, 2, 3)).sqrt()
            # Images without noise have no direction, and take part in the cross-entropy only.
            step = torch.where(length > 0, self.relative_step * sigma / length, 1.0)
            shift = reference.expand(step, y) * direction
            both = self.logits(dict(self.model.named_parameters()), torch.cat([y.detach() + shift, y.detach() - shift]))
            ahead, behind = reference.logsumexp(both).chunk(2)
            entropy = F.cross_entropy(both, self.labels.repeat(2))
            ((ahead - behind) @ (0.5 / step) + entropy).backward()
            return float(denoising + F.cross_entropy(logits.detach(), self.labels))
