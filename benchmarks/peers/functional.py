"""The joint loss as a function of the parameters, in PyTorch alone: what the torch peers compile or differentiate."""

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad

import cdn_kernels
from benchmarks.steps import Step
from cdn_kernels import reference


class Functional(Step):
    """A step whose gradient is that of a function of a dict of parameters.

    The noise is drawn once per step, before anything is compiled or differentiated, by the fastest sampler of the
    library (a user would call torch.randn at about the same cost, which would not give the noise of the other cases).

    Args:
        problem, layout: see :class:`Step`.
    """

    def __init__(self, problem, layout=torch.channels_last):
        super().__init__(problem, "reference", layout)

    def parameters(self):
        """Return the parameters by name, as tensors that no graph leads to."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def draw(self):
        """Return (y, sigma, eps) of this step."""
        key, x = cdn_kernels.Noise(0), self.x
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        sigma = cdn_kernels.sample_sigma(len(x), key, self.problem.levels, dtype=x.dtype, device=x.device)
        eps = cdn_kernels.standard_normal(x.shape, key, dtype=x.dtype, device=x.device, memory_format=layout)
        return reference.sample_noise(x, sigma, eps)[0], sigma, eps

    def logits(self, parameters, y):
        """Run the network, under autocast in bf16."""
        with self.problem.autocast():
            return functional_call(self.model, parameters, (y,))

    def log_density(self, parameters, y):
        """Return (log-densities summed over the batch, logits)."""
        logits = self.logits(parameters, y)
        return reference.logsumexp(logits).sum(), logits

    def loss(self, parameters, y, sigma, eps):
        """Return cross-entropy plus denoising score matching; autocast covers the forward alone, as in the library."""
        score, logits = grad(self.log_density, argnums=1, has_aux=True)(parameters, y)
        return F.cross_entropy(logits, self.labels) + reference.denoising_loss(score, sigma, eps)

    def keep(self, gradient, loss):
        """Leave the gradient, by name, where an optimizer looks for it, and return the loss as a float."""
        for name, parameter in self.model.named_parameters():
            parameter.grad = gradient[name]
        return float(loss)
