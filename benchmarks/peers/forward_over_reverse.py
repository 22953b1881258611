"""The step by forward mode over reverse mode: a directional derivative of an ordinary parameter gradient."""

import torch
import torch.nn.functional as F
from torch.func import grad, grad_and_value, jvp

from benchmarks.peers.functional import Functional
from cdn_kernels import reference


class ForwardOverReverse(Functional):
    """``d/dt grad_theta [E(y + t ydot) + t CE(y + t ydot)]`` at t = 0, with ydot the gradient of the loss by the score.

    For E the log-density summed over the batch, the first term gives ``grad_theta <ydot, grad_y E>`` (Pearlmutter,
    "Fast exact multiplication by the Hessian", 1994), and the second, linear in t, adds the gradient of the
    cross-entropy without a backward pass of its own.

    Its cost beyond the six units: the forward and input gradient of the score run again in the jvp, along with a weight
    gradient that nobody needs, and PyTorch convolves with the tangents of the weights, which are zero. The order
    matters: in torch 2.13 reverse mode over forward mode is wrong without a word for its group and layer norms.
    """

    def __init__(self, problem):
        # The forward derivative of torch.group_norm fails on channels last: "view size is not compatible".
        super().__init__(problem, torch.contiguous_format if problem.yardstick else torch.channels_last)

    def __call__(self):
        return self.keep(*self.gradient(self.parameters(), *self.draw()))

    def gradient(self, parameters, y, sigma, eps):
        """Return (the gradient of both terms by name, the loss)."""
        score, logits = grad(self.log_density, argnums=1, has_aux=True)(parameters, y)
        direction, denoising = grad_and_value(reference.denoising_loss)(score, sigma, eps)
        zero, one = y.new_zeros(()), y.new_ones(())
        _, gradient = jvp(lambda y, t: grad(self.tilted)(parameters, y, t), (y, zero), (direction, one))
        return gradient, denoising + F.cross_entropy(logits, self.labels)

    def tilted(self, parameters, y, t):
        """Return the log-density plus t times the cross-entropy."""
        value, logits = self.log_density(parameters, y)
        return value + t * F.cross_entropy(logits, self.labels)
